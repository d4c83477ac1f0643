"""Steering adds its number to the logits of marked keys, under whatever mask there is, and at zero it is not there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from domainkit.nets.steer import Steer, additive

TOKENS, HEADS = 5, 2


class Attention(nn.Module):
    """Keeps the mask it is called with."""

    mask: Tensor | None

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.mask = attention_mask
        return hidden_states


def called(bias: Tensor, marked: Tensor | None, mask: Tensor | None) -> list[Tensor | None]:
    """The mask each of two steered layers meets."""
    layers, steer = [Attention(), Attention()], Steer(2, HEADS)
    steer.bias.data.copy_(bias)
    steer.attach(layers)
    steer.marked = marked
    for layer in layers:
        layer(hidden_states=torch.zeros(1, TOKENS, 4), attention_mask=mask)
    return [layer.mask for layer in layers]


def test_without_marks_a_layer_is_called_as_it_was() -> None:
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    assert all(met is mask for met in called(torch.ones(2, HEADS), None, mask))


def test_each_layer_and_head_adds_its_own_number_to_marked_keys_only() -> None:
    bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    marked = torch.tensor([[False, True, False, False, True]])
    for layer, met in enumerate(called(bias, marked, None)):
        assert met is not None
        added = met - additive(None, torch.zeros(1, TOKENS, 4))
        for head in range(HEADS):
            for key in range(TOKENS):
                wanted = float(bias[layer, head]) if marked[0, key] else 0.0
                below = added[0, head, key:, key]  # the queries that may look at this key
                assert torch.allclose(below, torch.full_like(below, wanted))


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_every_kind_of_mask_means_the_same(kind: str) -> None:
    allowed = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]
    given = {"none": None, "bool": allowed, "additive": torch.zeros(1, 1, TOKENS, TOKENS).masked_fill(~allowed, -1e9)}
    made = additive(given[kind], torch.zeros(1, TOKENS, 4))
    logits = torch.randn(1, HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
    wanted = logits.masked_fill(~allowed, -math.inf).softmax(-1)
    assert torch.allclose((logits + made).softmax(-1), wanted, atol=1e-6)
