"""Routed experts of a layer that stays on disk: only those that tokens are sent to are read, a few at a time.

The family's own code computes each expert, and its outputs are weighted and summed as there, so that the same bits come
out as with all experts in memory. For that the outputs of all experts that a token is sent to are kept until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FEW = 8  # experts in memory at a time: reading has a cost of its own each time


@dataclass(frozen=True)
class Call:
    """What a router sends to the experts."""

    states: Tensor  # (tokens, width)
    chosen: Tensor  # (tokens, k) int64: the experts of each token
    weights: Tensor  # (tokens, k)


class Routed:
    """The `forward` of an experts module, for as long as the module holds no weights.

    read: puts the weights of some experts, by their numbers, into the module, which then has room for as many.
    """

    def __init__(self, experts: nn.Module, read: Callable[[Sequence[int]], None]) -> None:
        self._experts: Any = experts
        self._read, self._forward = read, experts.forward
        self._asked: list[Call] | None = None
        self._answers: Iterator[Tensor] | None = None
        vars(experts)["forward"] = self

    def __call__(self, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        if not any(value.is_meta for value in self._experts.parameters()):
            return self._forward(states, chosen, weights)
        call = Call(states, chosen, weights)
        if self._asked is not None:
            self._asked.append(call)
            return torch.zeros_like(states)
        return next(self._answer([call]) if self._answers is None else self._answers)

    def rounds(self) -> Iterator[bool]:
        """Two rounds of the same calls: the first one only asks, so that each expert is read once for all of them."""
        try:
            self._asked = []
            yield False
            self._answers, self._asked = self._answer(self._asked), None
            yield True
        finally:
            self._asked = self._answers = None

    def _answer(self, calls: Sequence[Call]) -> Iterator[Tensor]:
        """What the experts make of each call: (tokens, width)."""
        outs = [call.states.new_empty(call.chosen.numel(), call.states.shape[1]) for call in calls]
        wanted = torch.cat([call.chosen.flatten() for call in calls]).unique().tolist()
        for start in range(0, len(wanted), FEW):
            few = wanted[start : start + FEW]
            with self._reading(few):
                for call, out in zip(calls, outs, strict=True):
                    self._fill(out, call, few)
        for call in calls:
            weighted = outs.pop(0) * call.weights.reshape(-1, 1)
            yield weighted.view(*call.chosen.shape, -1).sum(1).to(call.states.dtype)

    def _fill(self, out: Tensor, call: Call, few: Sequence[int]) -> None:
        """Put into `out` (tokens * k, width) what the experts that are here make of the tokens sent to them."""
        numbers = torch.tensor(few, device=out.device)
        here = torch.isin(call.chosen.flatten(), numbers).nonzero()[:, 0]
        if len(here):
            rows = call.states[here // call.chosen.shape[1]]
            place = torch.searchsorted(numbers, call.chosen.flatten()[here])
            out[here] = self._forward(rows, place[:, None], torch.ones_like(rows[:, :1]))

    @contextmanager
    def _reading(self, few: Sequence[int]) -> Iterator[None]:
        """The module has these experts alone within this block."""
        table, count = self._experts._parameters, self._experts.num_experts
        before = dict(table)
        try:
            self._experts.num_experts = len(few)
            for name, value in before.items():
                room = torch.empty(len(few), *value.shape[1:], dtype=value.dtype, device="meta")
                table[name] = nn.Parameter(room, requires_grad=False)
            self._read(few)
            self._experts.requires_grad_(False)
            yield
        finally:
            table.update(before)
            self._experts.num_experts = count
