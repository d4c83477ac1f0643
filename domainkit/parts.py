"""`extract` by many workers: shards of whole chunks, put together to the bytes that one process writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from domainkit.data.jsonl import line
from domainkit.documents import Input, chunks
from domainkit.files import write_atomic, write_text
from domainkit.run import Run, load
from domainkit.types import Example, UserError
from domainkit.workers import Workers

SIZE = 16  # chunks of a shard: some 500 documents, what a killed worker costs
DIGITS = 4  # of a relation's score


@dataclass(frozen=True)
class Part:
    """A shard's documents read with a run; called with a number, it writes the shard's lines."""

    folder: Path
    run: Path
    inputs: tuple[Input, ...]
    summary: str = ""
    base: str | None = None
    hub: bool = False

    def __call__(self, number: int) -> None:
        reader, ahead = self.reader(), _ahead(self.inputs)
        found = [text for chunk in ahead.take(number * SIZE, SIZE) for text in told(reader, chunk, self.summary)]
        write_atomic(self.path(number), lambda path: path.write_bytes("".join(found).encode()))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.jsonl"

    def reader(self) -> Run:
        """The run, loaded once in each process."""
        return _loaded(self.run, self.base, self.hub)


def told(run: Run, chunk: Sequence[Example], summary: str) -> Iterator[str]:
    """A line for each document of a chunk, with what the run finds; scores as people can read them."""
    for example in run.annotate(chunk, summary=summary):
        relations = tuple(replace(one, score=round(one.score, DIGITS)) for one in example.relations)
        yield f"{line(replace(example, relations=relations))}\n"


def write(part: Part, out: Path, note: dict[str, Any], workers: Workers, *, overwrite: bool) -> None:
    """All shards, by workers, then together in `out`; the shards' folder is gone then.

    note: what the output belongs to besides the documents. Asked again after an interruption it does what is left.
    Raises UserError, unless it may be overwritten, for shards that belong to something else.
    """
    workers.check()
    count = _claim(part, note, overwrite=overwrite)
    workers.map(part, count, part.folder / "marks", title="extract")
    write_atomic(out, lambda path: _together([part.path(number) for number in range(count)], path))
    shutil.rmtree(part.folder)


def _claim(part: Part, note: dict[str, Any], *, overwrite: bool) -> int:
    """How many shards there are; the folder holds those of the same documents and options, if any."""
    known, seen, digest = part.folder / "note.json", 0, sha256()
    for chunk in chunks(part.inputs):
        seen += 1
        for example in chunk:
            digest.update(json.dumps([example.id, example.source, example.text]).encode())
    now = {**note, "documents": digest.hexdigest()}
    before = None
    with suppress(OSError, ValueError):
        before = json.loads(known.read_text(encoding="utf-8"))
    if part.folder.exists() and before != now:
        if not overwrite:
            raise UserError("holds what was begun with other documents, another run or other options",
                            where=part.folder, instead="what it was begun with, --overwrite to start again, "
                            "or another --out")  # fmt: skip
        shutil.rmtree(part.folder)
    write_text(known, json.dumps(now))
    return -(-seen // SIZE)


def _together(parts: Sequence[Path], out: Path) -> None:
    with out.open("wb") as whole:
        for part in parts:
            with part.open("rb") as rows:
                shutil.copyfileobj(rows, whole)


class _Ahead:
    """A stream of chunks that a process goes along: its shards come in rising order, so it seldom begins again."""

    def __init__(self, inputs: tuple[Input, ...]) -> None:
        self.inputs, self.at, self.rest = inputs, 0, chunks(inputs)

    def take(self, first: int, count: int) -> list[tuple[Example, ...]]:
        if first < self.at:
            self.at, self.rest = 0, chunks(self.inputs)
        found = list(islice(self.rest, first - self.at, first - self.at + count))
        self.at = first + count
        return found


@lru_cache(maxsize=1)
def _ahead(inputs: tuple[Input, ...]) -> _Ahead:
    return _Ahead(inputs)


@lru_cache(maxsize=1)
def _loaded(run: Path, base: str | None, hub: bool) -> Run:
    return load(run, base=base, hub=hub)
