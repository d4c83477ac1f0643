"""The TSV files of a concept graph, plain or gzipped: read with every fault and its line, written atomically."""

from __future__ import annotations

import gzip
import io
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from domainkit.files import write_atomic
from domainkit.fill import SHOWN
from domainkit.types import UserError

CONCEPTS, CONCEPT_COLUMNS = "concepts.tsv", ("id", "name", "synonyms", "types", "parents", "xrefs")
LINKS, LINK_COLUMNS = "links.tsv", ("head", "relation", "tail", "source")
SEVERAL = "|"  # between the values of one cell
PACKED = ".gz"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a graph's files, or, as a warning, one thing to know."""

    where: str  # file:line
    what: str
    instead: str = ""
    warning: bool = False

    def __str__(self) -> str:
        return str(UserError(self.what, where=self.where, instead=self.instead))


def stop(faults: Iterable[Fault], where: Path, *, shown: int | None = SHOWN) -> None:
    """Raise all faults as one UserError, the first `shown` of them spelled out; warnings are no faults."""
    errors = [fault for fault in faults if not fault.warning]
    if len(errors) == 1:
        raise UserError(errors[0].what, where=errors[0].where, instead=errors[0].instead)
    if errors:
        lines = [str(fault) for fault in errors[:shown]]
        lines += [f"and {len(errors) - len(lines):,} more"] * (len(lines) < len(errors))
        raise UserError("\n  ".join((f"{len(errors):,} faults", *lines)), where=where)


def locate(folder: Path, name: str) -> Path:
    """The file `name` of a folder, or its gzipped form where only that is there."""
    packed = folder / (name + PACKED)
    return packed if packed.is_file() and not (folder / name).is_file() else folder / name


def read_rows(file: Path, columns: tuple[str, ...], faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file with its line numbers; what is no row of these columns goes to `faults`.

    A byte order mark and Windows line ends are tolerated.
    """
    header = "\t".join(columns)
    number = 0
    try:
        for number, raw in enumerate(_lines(file), 1):
            try:
                line = raw.removeprefix(BOM_UTF8 if number == 1 else b"").rstrip(b"\r\n").decode()
            except UnicodeDecodeError as error:
                faults.append(Fault(f"{file}:{number}", f"not UTF-8 at byte {error.start}", "save it as UTF-8"))
                continue
            cells = line.split("\t")
            if number == 1:
                if line != header:
                    faults.append(Fault(f"{file}:1", f"wrong header {line[:80]!r}", f"{header!r}, separated by tabs"))
                    return
            elif len(cells) != len(columns):
                what = f"{len(cells)} column{'s' * (len(cells) != 1)}, not {len(columns)}"
                faults.append(Fault(f"{file}:{number}", what, f"{', '.join(columns)}, one tab between each"))
            else:
                yield number, cells
    except FileNotFoundError:
        faults.append(Fault(str(file), "no such file", f"a TSV file with the header {columns}"))
    except (OSError, EOFError, zlib.error) as error:
        faults.append(Fault(f"{file}:{number + 1}", f"cannot be read ({error})", "make or copy the file again"))
    else:
        if not number:
            faults.append(Fault(f"{file}:1", "the file is empty", f"the header {header!r}, then one row a line"))


def _lines(file: Path) -> Iterator[bytes]:
    if not file.name.endswith(PACKED):
        with file.open("rb") as stream:
            yield from stream
        return
    with gzip.open(file) as packed, io.BufferedReader(packed) as stream:
        yield from stream  # cut into lines by the buffer: gzip's own way takes three times as long


def write_rows(path: Path, columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> None:
    """Write a file; gzipped if its name says so, with no date in it: the same rows give the same bytes."""

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            if path.name.endswith(PACKED):
                with gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
                    packed.writelines(lines)
            else:
                file.writelines(lines)

    lines = ("\t".join(cells).encode() + b"\n" for cells in chain((columns,), rows))
    write_atomic(path, write)


def split(cell: str) -> tuple[str, ...]:
    """The values of a cell: none of an empty one."""
    return tuple(cell.split(SEVERAL)) if cell else ()
