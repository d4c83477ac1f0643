"""The backbone's embedding of names, computed once for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

Embed = Callable[[list[str]], np.ndarray]  # texts → (texts, width)

HELD = 50_000  # names kept, about 120 MB at a width of 576


class Embedded:
    """Unit vectors of texts."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._vectors: dict[str, np.ndarray] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Embed, all at once, those of the texts that are new."""
        wanted = dict.fromkeys(texts)
        new = [text for text in wanted if text not in self._vectors]
        if len(self._vectors) + len(new) > HELD:
            self._vectors.clear()
            new = list(wanted)
        if new:
            vectors = np.asarray(self._embed(new), np.float32)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._vectors.update(zip(new, vectors / np.where(lengths, lengths, 1), strict=True))

    def nearest(self, text: str, names: Iterable[str]) -> float:
        """The highest cosine of a prepared text with one of prepared names; 0 when there are none."""
        rows = [self._vectors[name] for name in names]
        return float((np.stack(rows) @ self._vectors[text]).max()) if rows else 0.0
