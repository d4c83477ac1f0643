"""Read documents with a run and write what it finds, one line of JSON each: streamed, in order, gone on with.

What is written stands in NAME.jsonl.part until all of it does. Documents are read in chunks, and an interrupted
output is gone on with at the last whole chunk: so its bytes are those of one that was never interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from domainkit import parts
from domainkit.data.read import FORMATS, locate, read
from domainkit.documents import Input, chunks
from domainkit.files import digest, explain, sync, write_text
from domainkit.model import bundle
from domainkit.parts import told
from domainkit.progress import bar
from domainkit.run import Run, asked, load
from domainkit.types import Example, UserError
from domainkit.workers import ALONE, Workers


@dataclass(frozen=True)
class Request:
    """What a user asks of `extract`; the fields are the options of the command line."""

    run: Path
    inputs: tuple[Path, ...]  # files, or folders of them
    out: Path
    format: str = ""  # of all inputs, one of FORMATS; "": as their names say
    summary: str = ""  # the task that writes one of each document
    base: str | None = None  # where the run's base lies now
    hub: bool = False
    overwrite: bool = False
    workers: Workers = ALONE


@dataclass(frozen=True)
class Extracted:
    """What came of it."""

    out: Path
    documents: int
    files: int  # that were asked for
    left_out: tuple[UserError, ...]  # why a file is not in `out`, one for each

    def stop(self) -> None:
        """Raises UserError with all files that were left out, if any were."""
        if self.left_out:
            told = "".join(f"\n  {fault}" for fault in self.left_out)
            raise UserError(f"{len(self.left_out)} of {self.files} files could not be read and were left out{told}")


@dataclass(frozen=True)
class Kept:
    """How much of an unfinished output holds."""

    chunks: int = 0
    documents: int = 0
    size: int = 0  # bytes
    fault: UserError | None = None  # why the rest does not


def extract(request: Request) -> Extracted:
    """Write every document with what the run finds in it to `out`; a file that cannot be read does not stop the rest.

    Asked again after an interruption, it goes on. Raises UserError for an output that is there already or belongs to
    something else, for a run that cannot be used, and when no file can be read.
    """
    record = bundle.read(request.run)
    asked(record, request.run, request.summary)
    _check_out(request)
    inputs, left_out, total = _readable(request)
    files = len(inputs) + len(left_out)
    part = request.out.with_name(f"{request.out.name}.part")
    if not total:
        Extracted(request.out, 0, files, left_out).stop()
    if request.workers:
        _by_workers(request, inputs)
        return Extracted(request.out, total, files, left_out)
    with _writing(part):
        kept = _claim(request, part, inputs)
    run = load(request.run, base=request.base, hub=request.hub) if kept.documents < total else None
    with _writing(part):
        if run:
            _write(run, request.summary, part, kept, inputs, total)
        sync(part)
        os.replace(part, request.out)
        _note(part).unlink(missing_ok=True)
    return Extracted(request.out, total, files, left_out)


def _check_out(request: Request) -> None:
    """Raises UserError unless the output may be written where it is asked for."""
    out = request.out
    if out.suffix != ".jsonl":
        raise UserError("the output is lines of JSON", where=out, instead=f"--out {out.with_suffix('.jsonl')}")
    if out.exists() and not request.overwrite:
        raise UserError("is there already", where=out, instead="--overwrite to replace it, or another --out")
    if request.format and request.format not in FORMATS:
        raise UserError(f"unknown format {request.format!r}", where="--format", instead=f"one of {list(FORMATS)}")


def _readable(request: Request) -> tuple[tuple[Input, ...], tuple[UserError, ...], int]:
    """The inputs in the order they were asked for, what is wrong with others, and how many documents there are."""
    found: dict[Path, Input] = {}
    faults: list[UserError] = []
    total = 0
    for path in request.inputs:
        try:
            located = locate(path, request.format)
        except UserError as fault:
            faults.append(fault)
            continue
        for file, format in located:
            # Of a BRAT pair only the text is wanted.
            one = Input(file, "text" if format == "brat" and file.suffix.lower() == ".txt" else format)
            if file in found:
                continue
            if file.resolve() == request.out.resolve():
                raise UserError("is read, so it cannot be written", where=file, instead="another --out")
            found[file] = one
    inputs = []
    for one in found.values():
        try:
            total += sum(1 for _ in read(one.file, format=one.format, blank=True))
            inputs.append(one)
        except UserError as fault:
            faults.append(fault)
    return tuple(inputs), tuple(faults), total


def _claim(request: Request, part: Path, inputs: Sequence[Input]) -> Kept:
    """Find out how much of an unfinished output holds, and cut off the rest.

    Raises UserError, unless it may be overwritten, if it belongs to other documents, another run or other options.
    """
    note = _belongs(request)
    part.parent.mkdir(parents=True, exist_ok=True)
    fault = None
    if part.exists() and _noted(part) != note:
        fault = UserError("holds what another run or other options found", where=part)
    kept = _holding(part, chunks(inputs)) if part.exists() and not fault else Kept(fault=fault)
    if kept.fault and not request.overwrite:
        raise UserError(kept.fault.what, where=kept.fault.where,
                        instead="what it was begun with, --overwrite to start again, or another --out")  # fmt: skip
    if not kept.size:
        part.unlink(missing_ok=True)
        write_text(_note(part), json.dumps(note))
    with part.open("ab") as rows:
        rows.truncate(kept.size)
    return kept


def _belongs(request: Request) -> dict[str, str]:
    """What an output depends on besides the documents."""
    return {"run": digest(request.run / bundle.RECORD), "summary": request.summary}


def _by_workers(request: Request, inputs: tuple[Input, ...]) -> None:
    part = parts.Part(request.out.with_name(f"{request.out.name}.parts").absolute(), request.run.absolute(), inputs,
                      request.summary, request.base, request.hub)  # fmt: skip
    with _writing(part.folder):
        parts.write(part, request.out, _belongs(request), request.workers, overwrite=request.overwrite)


def _note(part: Path) -> Path:
    """Where it is noted what an unfinished output belongs to."""
    return part.with_name(f"{part.name}.json")


def _noted(part: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(_note(part).read_text(encoding="utf-8"))
    return None


def _holding(part: Path, chunks: Iterable[Sequence[Example]]) -> Kept:
    """The whole chunks at the beginning of an unfinished output, and the row that belongs to another document."""
    number, documents, size = 0, 0, 0
    with part.open("rb") as rows:
        for chunk in chunks:
            for nth, example in enumerate(chunk, documents + 1):
                row = _row(rows.readline())
                if row is None:  # the end, or half a row
                    return Kept(number, documents, size)
                if row != (example.id, example.source, example.text):
                    what = f"{example.id!r} is another document than when this output was begun"
                    return Kept(number, documents, size, UserError(what, where=f"{part}:{nth}"))
            number, documents, size = number + 1, documents + len(chunk), rows.tell()
        if rows.readline():
            what = "there are fewer documents than when this output was begun"
            return Kept(number, documents, size, UserError(what, where=part))
    return Kept(number, documents, size)


def _row(raw: bytes) -> tuple[str, ...] | None:
    """Which document a row belongs to; None for what is no whole row."""
    try:
        found = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return tuple(found.get(key, "") for key in ("id", "source", "text")) if isinstance(found, dict) else None


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """What the system says of a failure to write, for people."""
    try:
        yield
    except OSError as error:
        raise explain(error, part) from error


def _write(run: Run, summary: str, part: Path, kept: Kept, inputs: Sequence[Input], total: int) -> None:
    """Read what is left with the run and append it, chunk by chunk."""
    written = kept.documents
    with part.open("ab") as rows, bar("extract", total - written, "documents") as advance:
        for chunk in islice(chunks(inputs), kept.chunks, None):
            rows.write("".join(told(run, chunk, summary)).encode())
            rows.flush()
            written += len(chunk)
            advance(len(chunk))
    if written != total:
        what = f"{written:,} documents were read where there had been {total:,}"
        raise UserError(what, where=part, instead="files that do not change meanwhile")
