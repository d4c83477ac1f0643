"""Bytes to text: UTF-8 or a fault that names the likely encoding and the way to convert it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from domainkit.data.faults import Faults

_GUESS_BYTES = 1 << 16  # enough text to tell encodings apart


def read_lines(file: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file (gzip if named .gz), numbered from 1, without their ends. A BOM is skipped.

    Only "\\n" and "\\r\\n" end a line: U+2028 and the like are text. Stops at the first byte that is not UTF-8.
    """
    offset = 0
    with open_binary(file) as lines:
        for number, raw in enumerate(lines, 1):
            faults.lines = number
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                _not_utf8(file, offset + error.start, number, raw + lines.read(_GUESS_BYTES), faults)
                break
            offset += len(raw)
            yield number, line.removesuffix("\n").removesuffix("\r")


def read_text(file: Path, faults: Faults) -> str | None:
    """The whole text of a UTF-8 file, every character as it is but a BOM; None and a fault if it is not UTF-8."""
    with open_binary(file) as whole:
        raw = whole.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _not_utf8(file, error.start, raw.count(b"\n", 0, error.start) + 1, raw[error.start :], faults)
        return None


def open_binary(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _not_utf8(file: Path, offset: int, line: int, sample: bytes, faults: Faults) -> None:
    """Add the fault "not UTF-8", with a guess made from `sample`, the bytes around the first bad one."""
    with open_binary(file) as start:
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
