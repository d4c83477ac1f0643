"""Tags of tokens from several depths of a model, from what a gazetteer says, and from the tokens on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

SIZE = 256  # of a token's summary
DROPOUT = 0.3
HINT = 16  # numbers for what the gazetteer says of a token, for each label


class Tagger(nn.Module):
    """A BiLSTM tagger over depths: a causal model's states know the past only, so a tagger has to look ahead.

    Low depths still know the word, high ones its meaning; each is layer-normed, all are projected to SIZE (the scalar
    mix of Peters et al. 2018, made a matrix). BiLSTM taggers: Huang et al. 2015, arXiv 1508.01991.

    forward(states, hints): for each text states (tokens, depths * width) and hints (tokens,) int64, the bit sets of
    `Gazetteer.hints` → for each text logits (tokens, 1 + 2 * labels), the tags of `data.bio`.
    """

    def __init__(self, width: int, depths: int, labels: int) -> None:
        super().__init__()
        self.width, self.labels = width, labels
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depths))
        self.project = nn.Linear(width * depths, SIZE)
        self.hint = nn.Linear(2 * labels, HINT * labels)
        self.dropout = nn.Dropout(DROPOUT)
        joined = SIZE + HINT * labels
        self.recurrent = nn.LSTM(joined, SIZE // 2, bidirectional=True)
        self.skip = nn.Linear(joined, SIZE)
        self.tags = nn.Linear(SIZE, 1 + 2 * labels)

    def forward(self, states: Sequence[Tensor], hints: Sequence[Tensor]) -> list[Tensor]:
        packed = pack_sequence([self._joined(s, h) for s, h in zip(states, hints, strict=True)], enforce_sorted=False)
        recurrent, _ = self.recurrent(packed)
        summary = self.dropout(gelu(self.skip(packed.data)) + recurrent.data)
        return unpack_sequence(
            PackedSequence(self.tags(summary), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        )

    def _joined(self, states: Tensor, hints: Tensor) -> Tensor:
        """What is known of each token by itself: (tokens, SIZE + HINT * labels)."""
        depths = states.split(self.width, -1)
        normed = torch.cat([norm(depth) for norm, depth in zip(self.norms, depths, strict=True)], -1)
        bits = (hints[:, None] >> torch.arange(2 * self.labels, device=hints.device)) & 1  # (tokens, 2 * labels)
        return torch.cat([self.dropout(gelu(self.project(normed))), self.hint(bits.to(normed.dtype))], -1)
