"""Attention of each token to keys that were chosen for it alone, joined with what it read beside them.

Both are under one softmax: `dense` tells the sum of its own. Kernels read the keys where they lie, on a GPU in Triton,
on a CPU in Numba (as in native sparse attention, Yuan et al. 2025, arXiv 2502.11089: the query heads of one key head
read the same keys, so these are read once for all of them). In other precisions than float32 a CPU gathers them and
multiplies.

Shapes, throughout: q (key heads, tokens, group, width), scaled; out (key heads, tokens, group, value width); picked
(key heads, tokens, count) int64, which of the keys; sums, logarithms, float32, (key heads, tokens, group).
"""

from __future__ import annotations

from math import prod
from threading import local
from types import ModuleType

import torch
from torch import Tensor

AT_ONCE = 2048  # keys gathered at once on a CPU: they and their values stay in a core's cache until they are used


class Room(local):
    """Memory that each thread uses again and again: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._held = torch.empty(0)

    def of(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        size = prod(shape)
        if self._held.numel() < size:
            self._held = torch.empty(2 * size, dtype=dtype)  # what is asked for grows little by little
        return self._held[:size].view(shape)


class Chosen:
    """The keys (key heads, keys, width) and values (key heads, keys, value width) of a text, read where tokens chose
    them. The widths may differ."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k.detach().contiguous(), v.detach().contiguous()  # once, not at every block
        self._k_room, self._v_room = Room(), Room()

    def read(self, q: Tensor, picked: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """out and sums: of what is read anyway → of that and the chosen keys."""
        if kernels := _kernels(q):
            return kernels.read(q, self.k, self.v, picked, out, sums)
        asked = q.flatten(0, 1)
        scores = asked.new_empty(*asked.shape[:2], picked.shape[2])
        pieces = self._pieces(picked)
        for rows, ids in pieces:
            torch.bmm(asked[rows], _gathered(self.k, ids, self._k_room).mT, out=scores[rows])
        shares = scores.view(*sums.shape, -1).float()
        most = torch.maximum(shares.amax(3), sums)
        shares = shares.sub_(most[..., None]).exp_()
        beside = (sums - most).exp_()
        total = shares.sum(3).add_(beside)
        shares, found = shares.to(out.dtype).flatten(0, 1), out.new_empty(out.shape)
        for rows, ids in pieces:
            torch.bmm(shares[rows], _gathered(self.v, ids, self._v_room), out=found.flatten(0, 1)[rows])
        found.addcmul_(out, beside[..., None].to(out.dtype)).div_(total[..., None])
        return found, total.log_().add_(most)

    def read_backward(self, grad: Tensor, q: Tensor, picked: Tensor, out: Tensor,
                      sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """What of the gradient of q goes through the chosen keys, the gradients of the scores (moves) and the shares,
        (key heads, tokens, group, count) each, for `add`. out and sums: of all that was read."""
        if kernels := _kernels(q):
            return kernels.read_backward(grad, q, self.k, self.v, picked, out, sums)
        drift = (grad.float() * out.float()).sum(-1, keepdim=True).flatten(0, 1)
        asked, grad, sums = q.flatten(0, 1), grad.flatten(0, 1), sums.flatten(0, 1)[..., None]
        dq = asked.new_empty(asked.shape)
        moves, shares = (asked.new_empty(*asked.shape[:2], picked.shape[2]) for _ in "ab")
        for rows, ids in self._pieces(picked):
            kg, vg = _gathered(self.k, ids, self._k_room), _gathered(self.v, ids, self._v_room)
            share = torch.bmm(asked[rows], kg.mT).float().sub_(sums[rows]).exp_()
            moves[rows] = torch.bmm(grad[rows], vg.mT).float().sub_(drift[rows]).mul_(share)
            shares[rows] = share
            torch.bmm(moves[rows], kg, out=dq[rows])
        return dq.view(q.shape), moves.unflatten(0, q.shape[:2]), shares.unflatten(0, q.shape[:2])

    def add(self, moves: Tensor, shares: Tensor, q: Tensor, grad: Tensor, picked: Tensor,
            dk: Tensor, dv: Tensor) -> None:  # fmt: skip
        """Adds what of the gradients of the keys and values goes through the chosen ones to dk and dv, float32. On a
        GPU the order of these additions is not fixed."""
        if kernels := _kernels(q):
            kernels.add(moves, shares, q, grad, picked, dk, dv)
            return
        for rows, ids in self._pieces(picked):
            for to, by, of in ((dk, moves, q), (dv, shares, grad)):
                part = torch.bmm(by.flatten(0, 1)[rows].mT, of.flatten(0, 1)[rows])
                to.flatten(0, 1).index_add_(0, ids.flatten(), part.flatten(0, 1).float())

    def _pieces(self, picked: Tensor) -> list[tuple[slice, Tensor]]:
        """A few tokens, when heads follow one another, and where their keys are then, (tokens, count)."""
        heads = torch.arange(len(self.k), device=picked.device)[:, None, None]
        parts = (picked + heads * self.k.shape[1]).flatten(0, 1).split(-(-AT_ONCE // picked.shape[2]))
        return [(slice(n * len(parts[0]), n * len(parts[0]) + len(ids)), ids) for n, ids in enumerate(parts)]


def _gathered(of: Tensor, ids: Tensor, room: Room) -> Tensor:
    """(tokens, count, width)"""
    held = room.of(of.dtype, (ids.numel(), of.shape[2]))
    return torch.index_select(of.flatten(0, 1), 0, ids.flatten(), out=held).unflatten(0, ids.shape)


def _kernels(q: Tensor) -> ModuleType | None:
    """None: plain torch."""
    if q.is_cuda:
        from domainkit.nets import chosen_triton  # here: Triton comes with torch for GPUs only

        return chosen_triton
    if q.device.type == "cpu" and q.dtype == torch.float32:
        from domainkit.nets import chosen_numba  # here: the import takes a second, and short texts need none

        return chosen_numba
    return None
