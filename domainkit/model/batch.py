"""Pack token sequences into rows and lay their activations out as one batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from domainkit.data.mix import pack
from domainkit.types import Sequence as Tokens

Row = tuple[Tokens, ...]  # sequences that share one row of a batch; none sees another


@dataclass(frozen=True)
class Batch:
    """Rows of packed sequences. Positions restart at 0 with every sequence: that is what keeps attention inside."""

    hidden: Tensor  # (rows, tokens, (depths + 1) * width) activations, last those that enter the top; padding is zero
    position_ids: Tensor  # (rows, tokens) int64
    placed: tuple[tuple[int, Tokens], ...]  # where each sequence starts in the flattened rows, and which it is

    def states(self, flat: Tensor, *, drop_last: bool = False) -> tuple[Tensor, Tensor]:
        """From flattened states (rows * tokens, width): the states of all sequences and who owns each.

        drop_last leaves out every sequence's last state (it predicts nothing).
        """
        spans = [(start, len(s.ids) - drop_last) for start, s in self.placed]
        index = torch.cat([torch.arange(start, start + length) for start, length in spans])
        owner = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor([length for _, length in spans]))
        return flat[index.to(flat.device)], owner.to(flat.device)

    def together(self) -> Tensor:
        """What to add to attention scores so that a token sees its own sequence, all of it, and no other:
        (rows, 1, tokens, tokens)."""
        owner = (self.position_ids == 0).cumsum(1)  # (rows, tokens)
        apart = owner[:, None, :, None] != owner[:, None, None, :]
        return torch.zeros(apart.shape).masked_fill(apart, torch.finfo(torch.float32).min)

    def holding(self, ids: Collection[int]) -> Tensor:
        """Which tokens are among `ids`: (rows, tokens) bool."""
        found = torch.zeros(self.position_ids.numel(), dtype=torch.bool)
        for start, s in self.placed:
            found[start : start + len(s.ids)] = torch.tensor([i in ids for i in s.ids])
        return found.view_as(self.position_ids)


def rows(sequences: Sequence[Tokens], row_tokens: int) -> list[Row]:
    """Pack whole sequences into rows of at most `row_tokens` tokens."""
    return [tuple(sequences[i] for i in row) for row in pack([len(s.ids) for s in sequences], row_tokens)]


def batches(sequences: Sequence[Tokens], *, row_tokens: int, batch_tokens: int, seed: int | None) -> list[list[Row]]:
    """Batches of about `batch_tokens` tokens: the sequences shuffled by `seed` (None keeps their order), packed."""
    order = list(sequences)
    if seed is not None:
        random.Random(seed).shuffle(order)
    packed = rows(order, row_tokens)
    size = max(1, batch_tokens // row_tokens)
    return [packed[i : i + size] for i in range(0, len(packed), size)]


def collate(batch: Sequence[Row], activations: Callable[[str], np.ndarray]) -> Batch:
    """Tensors of a batch; `activations` maps a sequence's digest to its (tokens, width) array."""
    longest = max(sum(len(s.ids) for s in row) for row in batch)
    position_ids = torch.zeros(len(batch), longest, dtype=torch.long)
    placed: list[tuple[int, Tokens]] = []
    hidden: Tensor | None = None
    for r, row in enumerate(batch):
        start = 0
        for s in row:
            values = activations(s.digest)
            if hidden is None:
                hidden = torch.zeros(len(batch), longest, values.shape[1])
            hidden[r, start : start + len(s.ids)].numpy()[:] = values  # no copy between: a long text's are large
            position_ids[r, start : start + len(s.ids)] = torch.arange(len(s.ids))
            placed.append((r * longest + start, s))
            start += len(s.ids)
        position_ids[r, start:] = torch.arange(longest - start)  # padding is a sequence of its own
    assert hidden is not None, "a batch holds at least one sequence"
    return Batch(hidden, position_ids, tuple(placed))
