"""Heads on top of the last hidden states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

PAIRS = 1 << 16  # hash buckets for pairs of neighbouring tokens
REACH = 20.0  # scale of the wide features: with unit-length ones Adam's small steps would take ten times as long


class WideDeepClassifier(nn.Module):
    """One label per sequence, from what the model understood and from the very tokens it read.

    Deep: mean and maximum of the sequence's hidden states, layer norm, linear. Wide: TF-IDF weighted tokens and
    token pairs, linear. Both are trained to answer alone and answer together, by the sum of their log-probabilities
    (product of experts, Hinton 2002): on a few hundred texts the words carry evidence that pooled states blur, and
    trained as one (Wide & Deep Learning, arXiv 1606.07792) the two overfit together.

    forward(hidden, owner, texts): hidden (tokens, width); owner (tokens,) int64 index of each token's sequence,
    counted from 0 without gaps; texts: the token ids of each sequence → log-probabilities of the two parts
    (2, sequences, labels); their sum ranks the labels.
    """

    rarity: Tensor  # (vocabulary + PAIRS,) inverse document frequency, from `observe`

    def __init__(self, width: int, labels: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.deep = nn.Linear(2 * width, labels)
        self.wide = nn.EmbeddingBag(vocabulary + PAIRS, labels, mode="sum")
        nn.init.zeros_(self.wide.weight)
        self.vocabulary = vocabulary
        self.register_buffer("rarity", torch.zeros(vocabulary + PAIRS))

    def observe(self, texts: Iterable[Sequence[int]]) -> None:
        """Learn from the training texts how rare each feature is; one never seen there counts nothing."""
        found = [self._features(ids) for ids in texts]
        counts = Counter(feature for features in found for feature in features)
        for feature, count in counts.items():
            self.rarity[feature] = 1 + torch.tensor((1 + len(found)) / (1 + count)).log()

    def forward(self, hidden: Tensor, owner: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        size = torch.bincount(owner, minlength=len(texts)).to(hidden.dtype)
        mean = hidden.new_zeros(len(texts), hidden.shape[-1]).index_add(0, owner, hidden) / size[:, None]
        index = owner[:, None].expand_as(hidden)
        peak = hidden.new_full(mean.shape, float("-inf")).scatter_reduce(0, index, hidden, "amax")
        pooled = torch.cat([mean, peak], -1)  # (sequences, 2 * width)
        return torch.stack([self.deep(self.norm(pooled)), self._evidence(texts)]).log_softmax(-1)

    def _evidence(self, texts: Sequence[Sequence[int]]) -> Tensor:
        bags = [torch.tensor(sorted(self._features(ids)), device=self.rarity.device) for ids in texts]
        weights = [nn.functional.normalize(self.rarity[bag], dim=0) * REACH for bag in bags]
        sizes = torch.tensor([0, *(len(bag) for bag in bags[:-1])], device=self.rarity.device)
        return self.wide(torch.cat(bags), sizes.cumsum(0), per_sample_weights=torch.cat(weights))

    def _features(self, ids: Sequence[int]) -> set[int]:
        words = ids[1:]  # the first is the prefix token
        pairs = {self.vocabulary + (a * 1_000_003 + b * 7919) % PAIRS for a, b in pairwise(words)}
        return set(words) | pairs
