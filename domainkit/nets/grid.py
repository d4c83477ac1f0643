"""Whole numbers in place of queries and of the means of cells, which are scored by them: a processor multiplies whole
numbers of 8 bits faster than any others, and with the keys' own middle taken off they order cells as well as bfloat16.

The grid is laid by the first keys of a text, so that no later one has a say in what an earlier token chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 127
ROOM = 1.5  # times as far out as the first keys later ones may lie
LEAST = 1e-30  # to divide by
BOUND = 2**22  # of an offset: float32 has it and any product to the unit


@dataclass(frozen=True)
class Grid:
    middle: Tensor  # (key heads, 1, width) float32
    step: Tensor  # (key heads, 1, 1) float32
    dtype: torch.dtype  # in which the whole numbers are multiplied

    @classmethod
    def over(cls, keys: Tensor, dtype: torch.dtype) -> Grid:
        """keys: (key heads, some, width)"""
        middle = keys.float().mean(1, keepdim=True)
        furthest = (keys - middle).abs().amax((1, 2), keepdim=True)
        return cls(middle, furthest.clamp_min_(LEAST) * (ROOM / MOST), dtype)

    def means(self, of: Tensor) -> Tensor:
        """Of (key heads, cells, width) float32; what lies further out is put on the edge."""
        return (of - self.middle).div_(self.step).round_().clamp_(-MOST, MOST).to(self.dtype)

    def asked(self, q: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """q: (key heads, tokens, group, width), lse: (key heads, tokens, group) → (key heads, group, tokens, width) and
        int32 (key heads, group, tokens). Product with a mean and offset are together lse - q·mean, in units of each
        token."""
        if self.dtype == torch.int8 and q.dtype == torch.float32:
            from domainkit.nets import grid_numba

            return grid_numba.asked(q, lse, self.middle, self.step)
        q = q.transpose(1, 2).float()
        unit = q.abs().amax((1, 3), keepdim=True).clamp_min_(LEAST) / MOST
        beside = lse.mT - (q @ self.middle.mT[:, None])[..., 0]
        offset = beside.div_(unit[..., 0] * self.step).round_().clamp_(-BOUND, BOUND)
        return (q / -unit).round_().to(self.dtype), offset.int().contiguous()
