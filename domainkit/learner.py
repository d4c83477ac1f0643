"""Several processes train one top: what an engine wraps, and the optimizer that steps it.

An engine (DDP, FSDP2, DeepSpeed) sees a few vectors with all that learns, and nothing else. All of them get a gradient
in every process, zero or not, so none waits for one that another's task never makes; frozen weights, 4-bit ones as
well, stay where they are; and what is saved has the names and shapes it always has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW

from domainkit.model.top import Top

Gradients = Callable[[tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]  # of the vectors: loss, one for each


class Learner(nn.Module):
    """All that learns as one float32 vector for each adapter and each tensor of a head: the pieces.

    `forward` takes what the objective takes; without batches the loss is 0. objective: a module over `top`, whose own
    parameters hold copies of the vectors' values.
    """

    accepts_loss_kwargs = False  # the Trainer must not count labels

    def __init__(self, objective: nn.Module, top: Top) -> None:
        super().__init__()
        self._kept = objective, top  # in a tuple: no modules of this one
        self.scale = 1.0  # of the loss while its gradients are made; they are told without it
        self.norm = 0.0  # of the last micro-batch's gradient
        self.used = frozenset[str]()  # pieces that it came to
        own = top.trainable()
        self.pieces: dict[str, list[str]] = {}  # → names of parameters
        for name in own:
            self.pieces.setdefault(_piece(name), []).append(name)
        for number, names in enumerate(self.pieces.values()):
            self.register_parameter(f"piece{number}", nn.Parameter(_flat([own[name] for name in names])))

    @property
    def top(self) -> Top:
        return self._kept[1]

    @property
    def vectors(self) -> tuple[nn.Parameter, ...]:
        """One for each piece; an engine may have put others in their place."""
        return tuple(self.get_parameter(f"piece{number}") for number in range(len(self.pieces)))

    def train(self, mode: bool = True) -> Learner:
        self._kept[0].train(mode)
        return super().train(mode)

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        return {"loss": _Through.apply(partial(self._gradients, inputs), *self.vectors)}

    def _gradients(self, inputs: Mapping[str, Any], vectors: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._show(self._named(vectors))
        own, found = self.top.trainable(), dict[str, Tensor]()
        loss = vectors[0].new_zeros(())
        if inputs["batches"]:
            with torch.enable_grad():
                loss = self._kept[0](**inputs)["loss"].to(vectors[0].dtype)
                scaled = loss * self.scale
            learning = {name: value for name, value in own.items() if value.requires_grad}  # one adapter's, and heads
            made = torch.autograd.grad(scaled, list(learning.values()), allow_unused=True)
            found = {name: value / self.scale for name, value in zip(learning, made, strict=True) if value is not None}
            for value in own.values():
                value.requires_grad_(True)
        self.used = frozenset(_piece(name) for name in found)
        flat = [_flat([found.get(n, torch.zeros_like(own[n])) for n in names]) for names in self.pieces.values()]
        self.norm = float(torch.nn.utils.get_total_norm(flat))
        return loss.detach(), tuple(part.to(like.dtype) for part, like in zip(flat, vectors, strict=True))

    def whole(self) -> dict[str, Tensor]:
        """The parameters that learn, by name, gathered from all processes; every one of them must call this."""
        vectors = self.vectors
        if hasattr(vectors[0], "ds_id"):  # ZeRO-3 has partitioned them
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(vectors)):
                return self._named([vector.detach().clone() for vector in vectors])
        return self._named([v.full_tensor() if isinstance(v, DTensor) else v.detach() for v in vectors])

    @torch.no_grad()
    def reset(self) -> None:
        """Go on from the values that the top's own parameters have; in every process the same."""
        own = self.top.trainable()
        for vector, names in zip(self.vectors, self.pieces.values(), strict=True):
            value = _flat([own[name] for name in names]).to(vector.device)
            if isinstance(vector, DTensor):
                part = distribute_tensor(value, vector.device_mesh, vector.placements)
                vector.to_local().copy_(part.to_local())
            else:
                vector.copy_(value)

    def settle(self) -> None:
        """Give the top's own parameters the values that were learned; every process must call this."""
        self._show(self.whole())

    @torch.no_grad()
    def _show(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.top.get_parameter(name).copy_(value)

    def _named(self, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
        """In the order of the top's own."""
        own, found = self.top.trainable(), dict[str, Tensor]()
        for vector, names in zip(vectors, self.pieces.values(), strict=True):
            parts = vector.split([own[name].numel() for name in names])
            found |= {name: part.view(own[name].shape) for name, part in zip(names, parts, strict=True)}
        return {name: found[name] for name in own}


class Pieces(AdamW):
    """AdamW that leaves alone the pieces that no process has come to, as it leaves a parameter without gradient.

    `learning`: the others; none before the first step, as engines call `step` only to have states.
    """

    def __init__(self, learner: Learner, **settings: Any) -> None:
        groups = zip(learner.pieces, learner.vectors, strict=True)
        super().__init__([{"params": [vector], "piece": piece} for piece, vector in groups], **settings)
        self.learning: set[str] = set()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for value in group["params"]:
                if not self.state[value]:
                    zeros = [torch.zeros_like(value, memory_format=torch.preserve_format) for _ in range(2)]
                    self.state[value] = {"step": torch.tensor(0.0), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
                if group["piece"] not in self.learning:
                    value.grad = None
        return super().step(closure)


class _Through(torch.autograd.Function):
    """A loss whose gradients are known already; all vectors get theirs at once, in every process in one order."""

    @staticmethod
    def forward(ctx: Any, gradients: Gradients, *vectors: Tensor) -> Tensor:
        loss, found = gradients(tuple(vector.detach() for vector in vectors))
        ctx.save_for_backward(*found)
        return loss

    @staticmethod
    def backward(ctx: Any, *out: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(out[0] * found for found in ctx.saved_tensors))


def _piece(name: str) -> str:
    """What a parameter belongs to: an adapter, all of which a loss comes to or none of it; else it is by itself."""
    _, lora, after = name.partition(".lora_")
    return f"adapter {after.split('.')[1]}" if lora else name


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.detach().float().flatten() for value in values])
