"""Batches of any sequences, for reading: activations come from a store if it has them, else from the trunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from domainkit.model.batch import Batch, batches, collate
from domainkit.model.split import Trunk
from domainkit.model.store import Store
from domainkit.model.trunk import forward, plan
from domainkit.types import Sequence as Tokens

BATCH = 4096  # tokens per batch
HELD = 16384  # tokens whose activations are kept: several tasks read the same sequences one after another


class Passing:
    """Call it with token sequences: yields batches with their activations, in the order of the sequences.

    context: tokens per row of a batch.
    """

    def __init__(self, trunk: Trunk, *, context: int, store: Store | None = None) -> None:
        self.trunk, self.context, self.store = trunk, context, store
        self._held: dict[str, np.ndarray] = {}  # digest → activations, the longest unused first

    def __call__(self, sequences: Sequence[Tokens]) -> Iterator[Batch]:
        for rows in batches(sequences, row_tokens=self.context, batch_tokens=BATCH, seed=None):
            self._compute([s for row in rows for s in row])
            yield collate(rows, self._get)

    def _compute(self, wanted: Sequence[Tokens]) -> None:
        missing = [s for s in wanted if s.digest not in self._held and not (self.store and s.digest in self.store)]
        for shard in plan(missing):
            for batch in shard:
                self._held |= {s.digest: value for s, value in zip(batch, forward(self.trunk, batch), strict=True)}
        needed = {s.digest for s in wanted}
        for digest in list(self._held):
            if sum(map(len, self._held.values())) <= HELD:
                break
            if digest not in needed:
                del self._held[digest]

    def _get(self, digest: str) -> np.ndarray:
        if digest in self._held:
            self._held[digest] = self._held.pop(digest)  # the last used stand last
            return self._held[digest]
        assert self.store is not None, "what the store lacks was computed"
        return self.store.get(digest)
