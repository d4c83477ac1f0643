"""Read documents from JSONL, text and Parquet files: checked whole first, then streamed."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from domainkit.types import Example, UserError

FORMATS = (".jsonl", ".jsonl.gz", ".txt", ".parquet")
SHOWN = 5  # faults spelled out in one message; the rest are counted
KEYS = ("text", "id", "label", "group", "language", "summary")  # other keys are ignored
_NAMES = ("id", "label", "group")  # may also be whole numbers in the file
_GUESS_BYTES = 1 << 16  # enough text to tell encodings apart

Row = tuple[int, dict[str, Any]]  # line (or Parquet row) number from 1, fields


@dataclass
class _Faults:
    """Everything wrong with the input, in order; `more` counts what does not fit in the message."""

    found: list[UserError] = field(default_factory=list)
    more: int = 0
    lines: int = 0  # lines read so far, for the formats that have lines

    def add(self, what: str, where: object, instead: str) -> None:
        if len(self.found) < SHOWN:
            self.found.append(UserError(what, where=where, instead=instead))
        else:
            self.more += 1

    def take(self, other: _Faults) -> None:
        """Add the faults of one file, each with the number of lines that were read."""
        lines = f" ({other.lines} {'line' if other.lines == 1 else 'lines'} read)" if other.lines else ""
        for fault in other.found:
            self.add(fault.what + lines, fault.where, fault.instead)
        self.more += other.more


def read(path: Path, *, language: str = "", source: str = "") -> Iterator[Example]:
    """Stream the documents of a file, or of every supported file below a folder, in sorted order.

    The whole input is checked before this returns, so a fault never surfaces half-way; the file is
    then read a second time, one document in memory at a time. `language` holds where a row states none.
    An id not given is "<file name>:<line>" ("<path inside the folder>:<line>" for a folder).
    Raises UserError with all faults of the input.
    """
    path = Path(path)
    files = _files(path)
    faults = _Faults()
    for file in files:
        _check(file, faults)
    _raise(faults, path)
    return _stream(path, files, language, source)


def _stream(path: Path, files: list[Path], language: str, source: str) -> Iterator[Example]:
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for number, row in _rows(file, _Faults()):
            yield Example(
                text=row["text"],
                summary=row.get("summary") or "",
                label=_text(row.get("label")),
                id=_text(row.get("id")) or f"{name}:{number}",
                group=_text(row.get("group")),
                language=row.get("language") or language,
                source=source,
            )


def _text(value: str | int | None) -> str:
    return "" if value is None else str(value)


def _files(path: Path) -> list[Path]:
    """The files to read. Raises UserError for a missing path, an unknown suffix or a folder without data."""
    known = "one of " + ", ".join(FORMATS) + ", or a folder of them"
    if not path.exists():
        raise UserError("no such file or folder", where=path, instead="check the path; " + known)
    if not path.is_dir():
        if not _format(path):
            raise UserError(f"unknown file type {path.suffix!r}", where=path, instead=known)
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and _format(file))
    if not files:
        raise UserError("the folder holds no file that can be read", where=path, instead=known)
    return files


def _format(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), "")


def _check(file: Path, faults: _Faults) -> None:
    """Read `file` once and add its faults."""
    own, good = _Faults(), 0
    for number, row in _rows(file, own):
        problems = list(_row_problems(row))
        for what, instead in problems:
            own.add(what, f"{file}:{number}", instead)
        good += not problems and bool(row["text"].strip())
    if not own.found and not good:
        what = "the file is empty" if not file.stat().st_size else "the file holds no document"
        own.add(what, file, "a file with at least one text")
    faults.take(own)


def _row_problems(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the values of one row, each with its remedy."""
    text = row.get("text")
    if "text" not in row:
        yield f"no key 'text', found {sorted(row)[:8]}", 'an object such as {"text": "…"}'
    for key in KEYS:
        value = row.get(key)
        number = key in _NAMES and isinstance(value, int) and not isinstance(value, bool)
        absent = value is None and (key != "text" or key not in row)
        if not (isinstance(value, str) or number or absent):
            yield f"{key!r} is {_type(value)}, not a string", f"put the value of {key!r} in quotes"
    if isinstance(text, str) and not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            yield (
                f"'text' holds half a surrogate pair at character {error.start}",
                "write the whole character",
            )


def _type(value: object) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "an array", "bool": "a truth value"}
    return names.get(type(value).__name__, "a number")


def _raise(faults: _Faults, path: Path) -> None:
    if not faults.found:
        return
    count = len(faults.found) + faults.more
    if count == 1:
        raise faults.found[0]
    lines = "".join(f"\n  {fault}" for fault in faults.found)
    rest = f"\n  and {faults.more} more" if faults.more else ""
    raise UserError(f"{count} faults{lines}{rest}", where=path)


def _rows(file: Path, faults: _Faults) -> Iterator[Row]:
    """The rows of one file; what cannot be read at all goes to `faults`."""
    readers: dict[str, Callable[[Path, _Faults], Iterator[Row]]] = {
        ".jsonl": _jsonl,
        ".jsonl.gz": _jsonl,
        ".txt": _txt,
        ".parquet": _parquet,
    }
    try:
        yield from readers[_format(file)](file, faults)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        faults.add(f"the gzip file is damaged or cut off ({error})", file, "copy or compress it again")
    except OSError as error:
        faults.add(f"cannot be read ({error.strerror or error})", file, "check the file and its permissions")


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _jsonl(file: Path, faults: _Faults) -> Iterator[Row]:
    """One JSON object per line; blank lines are skipped. Stops at the first byte that is not UTF-8."""
    offset = 0
    with _open(file) as lines:
        for number, raw in enumerate(lines, 1):
            faults.lines = number
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                _not_utf8(file, offset + error.start, number, raw + lines.read(_GUESS_BYTES), faults)
                break
            offset += len(raw)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = f"not valid JSON: {error}".replace(" at: ", ": ").replace(": line 1 column", " at column")
                faults.add(reason.split(" (char")[0], f"{file}:{number}", "one JSON object per line")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                faults.add(f"{_type(row)}, not an object", f"{file}:{number}", 'lines such as {"text": "…"}')


def _txt(file: Path, faults: _Faults) -> Iterator[Row]:
    raw = file.read_bytes()
    try:
        yield 1, {"text": raw.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        _not_utf8(file, error.start, raw.count(b"\n", 0, error.start) + 1, raw[error.start :], faults)


def _parquet(file: Path, faults: _Faults) -> Iterator[Row]:
    """The known columns of a Parquet file, in batches. Raises UserError if pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "Parquet files need pyarrow, which is not installed",
            where=file,
            instead="pip install 'domainkit[parquet]'",
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                faults.add(f"no column 'text', found {names[:8]}", file, "name the column of texts 'text'")
                return
            columns = [name for name in names if name in KEYS]
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowInvalid as error:
        what = f"not a whole Parquet file ({error})" if file.stat().st_size else "the file is empty"
        faults.add(what, file, "write it again as Parquet, or give it its true suffix")


def _not_utf8(file: Path, offset: int, line: int, sample: bytes, faults: _Faults) -> None:
    """Add the fault "not UTF-8", with a guess made from `sample`, the bytes around the first bad one."""
    with _open(file) as start:
        guess = _guess(start.read(4), sample[:_GUESS_BYTES])
    packed = file.name.lower().endswith(".gz")
    source = f"gzip -dc {file} | iconv" if packed else "iconv"
    target = "| gzip > NEW.jsonl.gz" if packed else f"{file} > NEW{file.suffix}"
    faults.add(
        f"not UTF-8 at byte {offset}; it looks like {guess.upper()}",
        f"{file}:{line}",
        f"convert it: {source} -f {guess} -t utf-8 {target}",
    )


def _guess(head: bytes, sample: bytes) -> str:
    """The likely encoding, by its iconv name.

    In GB18030 text the bytes above 0x7F come in pairs, in Western text mostly alone.
    """
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or sample.count(0) > len(sample) // 8:
        return "utf-16"
    runs, run = [0, 0], 0  # high bytes in runs of even and of odd length
    for byte in sample + b"\n":
        if byte > 0x7F:
            run += 1
        elif run:
            runs[run % 2] += run
            run = 0
    return "gb18030" if runs[0] > runs[1] else "latin1"
