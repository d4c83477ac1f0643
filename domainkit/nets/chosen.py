"""Attention of each token to keys that were chosen for it alone, joined with what it read beside them.

Both are under one softmax: `dense` tells the sum of its own. On a CPU the keys are gathered and multiplied, on a GPU
kernels in Triton read them where they lie (as in native sparse attention, Yuan et al. 2025, arXiv 2502.11089: the query
heads of one key head read the same keys, so these are read once for all of them).

Shapes, throughout: q (key heads, tokens, group, width), scaled; out (key heads, tokens, group, value width); picked
(key heads, tokens, count) int64, which of the keys; sums, logarithms, float32, (key heads, tokens, group).
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class Room:
    """Memory that is used again and again: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._held = torch.empty(0)

    def of(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = prod(shape)
        if self._held.numel() < size:
            self._held = like.new_empty(size)
        return self._held[:size].view(shape)


class Chosen:
    """The keys (key heads, keys, width) and values (key heads, keys, value width) of a text, read where tokens chose
    them. The widths may differ."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k.detach(), v.detach()
        self._rooms = Room(), Room()

    def read(self, q: Tensor, picked: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """out and sums: of what is read anyway → of that and the chosen keys."""
        if _on_gpu(q):
            from domainkit.nets import chosen_triton  # here: Triton comes with torch for GPUs only

            return chosen_triton.read(q, self.k, self.v, picked, out, sums)
        _, kg, vg = self._gathered(picked)
        scores = torch.bmm(q.flatten(0, 1), kg.mT).float().view(*sums.shape, -1)
        most = torch.maximum(scores.amax(3), sums)
        shares = scores.sub_(most[..., None]).exp_()
        beside = (sums - most).exp_()
        total = shares.sum(3).add_(beside)
        found = torch.bmm(shares.flatten(0, 1).to(vg.dtype), vg).view_as(out)
        found = torch.addcmul(found, out, beside[..., None].to(out.dtype)).div_(total[..., None])
        return found, total.log_().add_(most)

    def read_backward(self, grad: Tensor, q: Tensor, picked: Tensor, out: Tensor, sums: Tensor,
                      dk: Tensor, dv: Tensor) -> Tensor:  # fmt: skip
        """What of the gradient of q goes through the chosen keys; those of the keys and values are added to dk and dv,
        float32. out and sums: of all that was read. On a GPU the order of these additions is not fixed."""
        if _on_gpu(q):
            from domainkit.nets import chosen_triton

            return chosen_triton.read_backward(grad, q, self.k, self.v, picked, out, sums, dk, dv)
        ids, kg, vg = self._gathered(picked)
        drift = (grad.float() * out.float()).sum(-1, keepdim=True).flatten(0, 1)
        asked, grad, sums = q.flatten(0, 1), grad.flatten(0, 1), sums.flatten(0, 1)[..., None]
        shares = torch.bmm(asked, kg.mT).float().sub_(sums).exp_()
        moves = torch.bmm(grad, vg.mT).float().sub_(drift).mul_(shares)
        moves, shares = moves.to(q.dtype), shares.to(q.dtype)
        dk.flatten(0, 1).index_add_(0, ids, torch.bmm(moves.mT, asked).flatten(0, 1).float())
        dv.flatten(0, 1).index_add_(0, ids, torch.bmm(shares.mT, grad).flatten(0, 1).float())
        return torch.bmm(moves, kg).view_as(q)

    def _gathered(self, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the picked keys are when heads follow one another, flat; the keys and values, (key heads * tokens,
        count, width) each."""
        heads, keys = self.k.shape[:2]
        ids = (picked + torch.arange(heads, device=picked.device)[:, None, None] * keys).flatten()
        kg, vg = (
            torch.index_select(of.flatten(0, 1), 0, ids, out=room.of(of, (len(ids), of.shape[2])))
            for of, room in zip((self.k, self.v), self._rooms, strict=True)
        )
        return ids, kg.unflatten(0, (-1, picked.shape[2])), vg.unflatten(0, (-1, picked.shape[2]))


def _on_gpu(q: Tensor) -> bool:
    return q.is_cuda
