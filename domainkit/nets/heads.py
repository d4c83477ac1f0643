"""Heads on top of the last hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanClassifier(nn.Module):
    """One label per sequence: mean of its hidden states, layer norm, linear.

    forward(hidden, owner): hidden (tokens, width), owner (tokens,) int64 index of each token's sequence, counted
    from 0 without gaps → logits (sequences, labels).
    """

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, labels)

    def forward(self, hidden: Tensor, owner: Tensor) -> Tensor:
        count = int(owner.max()) + 1
        total = hidden.new_zeros(count, hidden.shape[-1]).index_add(0, owner, hidden)
        size = torch.bincount(owner, minlength=count).to(hidden.dtype)
        return self.out(self.norm(total / size[:, None]))  # (sequences, labels)
