"""Attention that may lean towards some tokens: one learned number per layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Steer(nn.Module):
    """A bias on the attention logits of marked keys, for the attention modules it is attached to.

    It starts at zero, where it changes nothing, and is learned with the rest: the whole of "attend more to domain
    words" in layers x heads numbers. attach() adds it to the mask that each module is called with; `marked` says,
    before the forward pass, which tokens are meant: (rows, tokens) bool.
    """

    marked: Tensor | None = None

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(layers, heads))

    def attach(self, attentions: Sequence[nn.Module]) -> None:
        """Steer these modules, one per layer; they must take `attention_mask` and `hidden_states` by name."""
        for layer, module in enumerate(attentions):
            module.register_forward_pre_hook(self._hook(layer), with_kwargs=True)

    def _hook(self, layer: int) -> Any:
        def lean(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            if self.marked is None:
                return None
            mask = additive(kwargs.get("attention_mask"), kwargs["hidden_states"])  # (rows or 1, 1, tokens, tokens)
            bias = self.bias[layer][:, None, None] * self.marked[:, None, None, :]  # (rows, heads, 1, tokens)
            return args, {**kwargs, "attention_mask": mask + bias}

        return lean


def additive(mask: Tensor | None, states: Tensor) -> Tensor:
    """A mask to be added to attention logits: (rows or 1, 1, tokens, tokens), 0 where a token may look.

    mask: None (causal), bool (True: may look) or additive already. states: (rows, tokens, width).
    """
    tokens = states.shape[1]
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=states.device).tril()[None, None]
    if mask.dtype == torch.bool:
        open_ = torch.zeros(mask.shape, dtype=states.dtype, device=mask.device)
        mask = open_.masked_fill(~mask, torch.finfo(states.dtype).min)
    return mask
