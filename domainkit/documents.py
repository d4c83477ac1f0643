"""Files as documents to read, in chunks that only the documents decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from domainkit.data.read import stream
from domainkit.kinds import CHUNK
from domainkit.types import Example

LETTERS = 100_000  # characters of a chunk after which it is not filled further: a hundred pages are one by themselves


@dataclass(frozen=True)
class Input:
    """A file that can be read."""

    file: Path
    format: str

    def documents(self) -> Iterator[Example]:
        """Each with the id it has in the file, else the file's name and its line; `source` is the file as asked for.

        The whole of a text file goes by the file's name.
        """
        for one in stream(self.file, [(self.file, self.format)], source=str(self.file)):
            yield replace(one, id=self.file.name) if self.format == "text" else one


def chunks(inputs: Iterable[Input]) -> Iterator[tuple[Example, ...]]:
    """The documents of all inputs, some at a time; only the documents decide how many."""
    chunk: list[Example] = []
    for one in inputs:
        for example in one.documents():
            chunk.append(example)
            if len(chunk) == CHUNK or sum(len(e.text) for e in chunk) >= LETTERS:
                yield tuple(chunk)
                chunk = []
    if chunk:
        yield tuple(chunk)
