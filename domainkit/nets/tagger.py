"""Tags of tokens from several depths of a model, from what a gazetteer says, and from the tokens on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.nn.utils.rnn import pad_sequence

from domainkit.nets.crf import Crf

SIZE = 256  # of a token's summary
DROPOUT = 0.3
HINT = 32  # numbers for what the gazetteer says of a token
BITS = 62  # that the gazetteer may set


class Tagger(nn.Module):
    """A BiLSTM tagger over depths: a causal model's states know the past only, so a tagger has to look ahead.

    Low depths still know the word, high ones its meaning; all are projected to SIZE (the scalar mix of Peters et al.
    2018, made a matrix). BiLSTM taggers: Huang et al. 2015, arXiv 1508.01991.

    A name's first mention is often the only one with its long form beside it, a later one the only one with a verb that
    tells; so each token also sees the mean over its text of the tokens that are written alike (after Akbik et al. 2019,
    "Pooled contextualized embeddings for named entity recognition").

    forward(states, hints, ids): for each text states (tokens, depths * width), normed, hints (tokens,) int64, the bit
    sets of `Gazetteer.hints`, and the token ids (tokens,) int64 → for each text logits (tokens, 1 + 2 * labels), the
    tags of `data.bio`, which are scores for `chain`.
    """

    def __init__(self, width: int, depths: int, labels: int) -> None:
        super().__init__()
        self.project = nn.Linear(width * depths, SIZE)
        self.hint = nn.Linear(BITS, HINT)
        self.dropout = nn.Dropout(DROPOUT)
        joined = 2 * SIZE + HINT
        self.onward, self.back = (nn.LSTM(joined, SIZE // 2, batch_first=True) for _ in range(2))
        self.skip = nn.Linear(joined, SIZE)
        self.tags = nn.Linear(SIZE, 1 + 2 * labels)
        self.chain = Crf(labels)

    def forward(self, states: Sequence[Tensor], hints: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
        joined = [self._joined(*of) for of in zip(states, hints, ids, strict=True)]
        tokens = torch.cat(joined)
        summary = self.dropout(gelu(self.skip(tokens)) + torch.cat(self._recurrent(joined)))
        return list(self.tags(summary).split([len(one) for one in joined]))

    def _recurrent(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """A BiLSTM over each text: (tokens, SIZE). Two LSTMs over padded texts, one over their reverse: on a CPU that
        is three times as fast as a bidirectional one over a PackedSequence, which goes token by token."""
        onward, _ = self.onward(pad_sequence(list(joined), batch_first=True))
        back, _ = self.back(pad_sequence([one.flip(0) for one in joined], batch_first=True))
        return [
            torch.cat([a[: len(one)], b[: len(one)].flip(0)], -1)
            for a, b, one in zip(onward, back, joined, strict=True)
        ]

    def _joined(self, states: Tensor, hints: Tensor, ids: Tensor) -> Tensor:
        """What is known of each token without its neighbours: (tokens, 2 * SIZE + HINT)."""
        bits = (hints[:, None] >> torch.arange(BITS, device=hints.device)) & 1  # (tokens, BITS)
        own = gelu(self.project(states))
        return torch.cat([self.dropout(torch.cat([own, _alike(own, ids)], -1)), self.hint(bits.to(states.dtype))], -1)


def _alike(own: Tensor, ids: Tensor) -> Tensor:
    """Of each token the mean over those with its id: (tokens, size)."""
    _, group, count = ids.unique(return_inverse=True, return_counts=True)
    total = own.new_zeros(len(count), own.shape[1]).index_add(0, group, own)
    return (total / count[:, None])[group]
