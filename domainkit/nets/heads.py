"""Heads on top of the last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from domainkit.nets.words import Words

CAUTION = 0.5  # scale of the deep part: Adam moves all weights alike, and full steps would shout the words down


class WideDeepClassifier(nn.Module):
    """One label per sequence, from the very tokens it read (wide) and from what the model understood (deep).

    Wide: `Words`, solved beforehand. Deep: mean of the sequence's hidden states, layer norm, linear, starting at
    zero; it is trained, with the LoRA below it, to correct the words where they err. After Wide & Deep Learning
    (arXiv 1606.07792), where both are trained as one. No maximum: where two tokens nearly tie, its gradient jumps
    with the last bit, and training stops being the same wherever the activations were rounded otherwise.

    forward(hidden, owner, texts): hidden (tokens, width); owner (tokens,) int64 index of each token's sequence,
    counted from 0 without gaps; texts: the token ids of each sequence → log-probabilities (sequences, labels).
    """

    def __init__(self, width: int, labels: int, vocabulary: int) -> None:
        super().__init__()
        self.words = Words(labels, vocabulary)
        self.norm = nn.LayerNorm(width)
        self.deep = nn.Linear(width, labels)
        nn.init.zeros_(self.deep.weight)
        nn.init.zeros_(self.deep.bias)

    def forward(self, hidden: Tensor, owner: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        size = torch.bincount(owner, minlength=len(texts)).to(hidden.dtype)
        mean = hidden.new_zeros(len(texts), hidden.shape[-1]).index_add(0, owner, hidden) / size[:, None]
        return (self.words(texts) + CAUTION * self.deep(self.norm(mean))).log_softmax(-1)
