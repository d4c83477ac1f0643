"""Batches of any sequences, for reading: activations come from a store if it has them, else from the trunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from domainkit.model.batch import Batch, Row, batches, collate
from domainkit.model.split import Trunk
from domainkit.model.store import Store
from domainkit.model.trunk import forward_all, plan
from domainkit.types import Sequence as Tokens

BATCH = 4096  # tokens per batch
HELD = 16384  # tokens whose batches are kept: several tasks read the same text one after another

Key = tuple[tuple[str, ...], ...]  # digests of the sequences of each row


class Passing:
    """Call it with token sequences: yields batches with their activations, in the order of the sequences.

    Asked again for the same sequences, it gives the same tensors. context: tokens per row of a batch.
    """

    def __init__(self, trunk: Trunk, *, context: int, store: Store | None = None) -> None:
        self.trunk, self.context, self.store = trunk, context, store
        self._held: dict[Key, Batch] = {}  # the longest unused first

    def __call__(self, sequences: Sequence[Tokens]) -> Iterator[Batch]:
        for rows in batches(sequences, row_tokens=self.context, batch_tokens=BATCH, seed=None):
            key = tuple(tuple(s.digest for s in row) for row in rows)
            made = self._held.pop(key, None) or self._made(rows)
            self._held[key] = made  # the last used stands last
            while sum(batch.position_ids.numel() for batch in self._held.values()) > HELD and len(self._held) > 1:
                del self._held[next(iter(self._held))]
            placed = zip(made.placed, (s for row in rows for s in row), strict=True)
            yield replace(made, placed=tuple((start, s) for (start, _), s in placed))

    def _made(self, rows: Sequence[Row]) -> Batch:
        found: dict[str, np.ndarray] = {}
        wanted = {s.digest: s for row in rows for s in row}
        for s in wanted.values():
            if self.store is not None and s.digest in self.store:
                found[s.digest] = self.store.get(s.digest)
        shards = plan([s for digest, s in wanted.items() if digest not in found], self.trunk.device)
        together = [batch for shard in shards for batch in shard]
        for batch, values in zip(together, forward_all(self.trunk, together), strict=True):
            found |= {s.digest: value for s, value in zip(batch, values, strict=True)}
        return collate(rows, found.__getitem__)
