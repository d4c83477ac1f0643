"""Heads on top of the last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from domainkit.nets.words import Words

CAUTION = 0.5  # weight of the deep part while it learns: at full weight Adam's steps would shout the words down


class WideDeepClassifier(nn.Module):
    """One label per sequence, from the very tokens it read (wide) and from what the model understood (deep).

    Wide: `Words`, solved beforehand. Deep: mean of the sequence's hidden states, layer norm, linear, starting at
    zero; it is trained, with the LoRA below it, to correct the words where they err. After Wide & Deep Learning
    (arXiv 1606.07792), where both are trained as one. No maximum: where two tokens nearly tie, its gradient jumps
    with the last bit, and training stops being the same wherever the activations were rounded otherwise.

    What the deep part adds can be noise, when words tell it all; so `settle` chooses its weight afterwards.

    forward(hidden, owner, texts): hidden (tokens, width); owner (tokens,) int64 index of each token's sequence,
    counted from 0 without gaps; texts: the token ids of each sequence → log-probabilities (sequences, labels).
    """

    weight: Tensor  # () of the deep part

    def __init__(self, width: int, labels: int, vocabulary: int) -> None:
        super().__init__()
        self.words = Words(labels, vocabulary)
        self.norm = nn.LayerNorm(width)
        self.deep = nn.Linear(width, labels)
        nn.init.zeros_(self.deep.weight)
        nn.init.zeros_(self.deep.bias)
        self.register_buffer("weight", torch.tensor(CAUTION))

    def forward(self, hidden: Tensor, owner: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        wide, deep = self.parts(hidden, owner, texts)
        return (wide + self.weight * deep).log_softmax(-1)

    def parts(self, hidden: Tensor, owner: Tensor, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities by the words and logits by the states: each (sequences, labels)."""
        size = torch.bincount(owner, minlength=len(texts)).to(hidden.dtype)
        mean = hidden.new_zeros(len(texts), hidden.shape[-1]).index_add(0, owner, hidden) / size[:, None]
        return self.words(texts), self.deep(self.norm(mean))

    @torch.no_grad()
    def settle(self, wide: Tensor, deep: Tensor, gold: Tensor) -> None:
        """Choose the deep part's weight, 0 to 1, that best predicts texts neither part learned from.

        wide, deep: what `parts` says of them; gold: (sequences,) int64. The cross-entropy is convex in the weight, so
        there is one best. Stacked generalization (Wolpert 1992).
        """
        from scipy.optimize import minimize_scalar

        def surprise(weight: float) -> float:
            return float(cross_entropy(wide.double() + weight * deep.double(), gold))

        best = minimize_scalar(surprise, bounds=(0, 1), method="bounded").x
        self.weight.fill_(best if surprise(best) < surprise(0.0) else 0.0)
