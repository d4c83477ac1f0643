"""Read documents of every format: checked whole first, then streamed. One file per format lies beside this one."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from domainkit.data import brat, conll, dialogue, docbin, jsonl, parquet, pubtator
from domainkit.data.faults import Faults
from domainkit.data.lines import read_text
from domainkit.data.row import Allowed, Row, check, example
from domainkit.progress import say
from domainkit.types import Example, UserError


def _text(file: Path, faults: Faults) -> Iterator[Row]:
    """A whole text file is one document."""
    text = read_text(file, faults)
    if text is not None:
        yield Row(1, {"text": text})


_READERS: dict[str, Callable[[Path, Faults], Iterator[Row]]] = {
    "jsonl": jsonl.rows,
    "text": _text,
    "parquet": parquet.rows,
    "pubtator": pubtator.rows,
    "brat": brat.rows,
    "conll": conll.rows,
    "csv": dialogue.rows,
    "spacy": docbin.rows,
}
FORMATS: dict[str, tuple[str, ...]] = {  # format → how its files' names end
    "jsonl": (".jsonl", ".jsonl.gz"),
    "text": (".txt",),
    "parquet": (".parquet",),
    "pubtator": (".pubtator", ".pubtator.txt", ".txt"),
    "brat": (".ann", ".txt"),
    "conll": (".conll", ".iob", ".bio", ".tsv", ".txt"),
    "csv": (".csv",),
    "spacy": (".spacy",),
}
_SNIFFED = 4096  # bytes at a file's beginning that tell PubTator and CoNLL from other text


def read(
    path: Path, *, language: str = "", source: str = "", format: str = "", allowed: Allowed | None = None,
    blank: bool = False,
) -> Iterator[Example]:  # fmt: skip
    """Stream the documents of a file, or of every supported file below a folder, in sorted order.

    The whole input is checked before this returns, so a fault never surfaces half-way; the file is
    then read a second time. `language` holds where a document states none, `source` for all of them when given.
    An id not given is "<file name>:<line>" ("<path inside the folder>:<line>" for a folder).

    format: one of FORMATS; "" goes by the end of each file's name. A .txt is one plain document, unless an .ann file
    lies beside it (BRAT) or it begins as PubTator does. A .tsv has to begin as CoNLL does; CoNLL in a .txt has to be
    named.
    allowed: the labels that gold annotation may use; any when not given. What gold annotation may look like is told in
    `domainkit.data.row`.
    blank: whether a file may hold nothing but blank documents. Raises UserError with all faults of the input.
    """
    path = Path(path)
    files = locate(path, format)
    faults = Faults()
    for file, reader in files:
        _check(file, reader, faults, allowed or Allowed(), blank)
    faults.stop(path)
    if faults.passed:
        say(f"{path}: read without {_counted(faults.passed)}")
    return stream(path, files, language, source)


def stream(path: Path, files: list[tuple[Path, str]], language: str = "", source: str = "") -> Iterator[Example]:
    """The documents of files that `read` found sound, unchecked; `path` is the file itself, or a folder above them."""
    for file, reader in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for row in _rows(file, reader, Faults()):
            one = example(row)
            yield replace(
                one,
                id=one.id or f"{name}:{row.number}",
                language=one.language or language,
                source=source or one.source,
            )


def locate(path: Path, format: str = "") -> list[tuple[Path, str]]:
    """The files to read, each with its format: a file itself, or those below a folder, in sorted order.

    Raises UserError for a missing path, an unknown format or suffix, or a folder without data.
    """
    if format and format not in FORMATS:
        raise UserError(f"unknown format {format!r}", where=path, instead=f"one of {list(FORMATS)}")
    suffixes = FORMATS[format] if format else tuple(dict.fromkeys(s for all_ in FORMATS.values() for s in all_))
    known = "one of " + ", ".join(suffixes) + ", or a folder of them"
    if not path.exists():
        raise UserError("no such file or folder", where=path, instead="check the path; " + known)
    if not path.is_dir():
        found = format or _format(path)
        if not found:
            remedy = "CoNLL columns, a token and its tag on each line, or " if path.suffix.lower() == ".tsv" else ""
            raise UserError(f"unknown file type {path.suffix!r}", where=path, instead=remedy + known)
        return [(_pair(path) if found == "brat" else path, found)]
    named = [file for file in sorted(path.rglob("*")) if file.name.lower().endswith(suffixes) and file.is_file()]
    marked = {file.parent for file in named if file.suffix.lower() == ".ann"}  # a .txt among .ann files lacks its own
    files: dict[Path, str] = {}
    for file in named:
        found = format or _format(file)
        found = "brat" if found == "text" and not format and file.parent in marked else found
        if found:
            files[_pair(file) if found == "brat" else file] = found
    if not files:
        raise UserError("the folder holds no file that can be read", where=path, instead=known)
    return list(files.items())


def _pair(file: Path) -> Path:
    """The text of a BRAT pair stands for both; an .ann without text for itself."""
    text = file.with_suffix(".txt")
    return text if text.is_file() else file


def _format(file: Path) -> str:
    """The format of a file by its name, or for .txt and .tsv by how it begins; "" if no format knows it."""
    name = file.name.lower()
    if name.endswith(".tsv"):  # all kinds of tables are called so
        return "conll" if conll.begins(_first_line(file)) else ""
    if not name.endswith(".txt"):
        return next((format for format, suffixes in FORMATS.items() if name.endswith(suffixes)), "")
    if file.with_suffix(".ann").is_file():
        return "brat"
    return "pubtator" if name.endswith(".pubtator.txt") or pubtator.begins(_first_line(file)) else "text"


def _first_line(file: Path) -> str:
    """The first line that is not blank, as far as it takes to know the format."""
    try:
        with file.open("rb") as start:
            head = start.read(_SNIFFED)
    except OSError:  # the reader will say so
        return ""
    return head.decode("utf-8-sig", "ignore").lstrip().partition("\n")[0].removesuffix("\r")


def _check(file: Path, reader: str, faults: Faults, allowed: Allowed, blank: bool) -> None:
    """Read `file` once and add its faults."""
    own, good = Faults(), 0
    for row in _rows(file, reader, own):
        good += check(row, file, own, allowed) and (blank or bool(row.fields["text"].strip()))
    if not own.found and not good:
        what = "the file is empty" if not file.stat().st_size else "the file holds no document"
        own.add(what, file, "a file with at least one text")
    faults.take(own)


def _rows(file: Path, reader: str, faults: Faults) -> Iterator[Row]:
    """The rows of one file; what cannot be read at all goes to `faults`."""
    try:
        yield from _READERS[reader](file, faults)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        faults.add(f"the gzip file is damaged or cut off ({error})", file, "copy or compress it again")
    except OSError as error:
        faults.add(f"cannot be read ({error.strerror or error})", file, "check the file and its permissions")


def _counted(passed: Counter[str]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in passed.items())
