"""The bilingual glossary of a domain: one TSV that analysts edit, read whole, every fault told at once."""

from __future__ import annotations

import re
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

from domainkit import assets
from domainkit.fill import SHOWN
from domainkit.types import UserError

COLUMNS = ("id", "en", "zh", "variants", "category", "source")
HEADER = "\t".join(COLUMNS)
SEVERAL = "|"  # between the forms of one cell

_CHINESE = re.compile("[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_ID = re.compile("[a-z0-9-]+")
_OLD = re.compile("(?<![蚊帷幔营])帐(?![篷幕])")  # the character is still right for nets and tents


@dataclass(frozen=True)
class Term:
    """One sense: its standard English and Chinese terms and every other form that occurs in text."""

    id: str
    en: str
    zh: tuple[str, ...]  # the first is the standard term
    variants: tuple[str, ...]
    category: str
    source: str

    @property
    def forms(self) -> tuple[str, ...]:
        """Every surface form, each once: en, zh, variants."""
        return tuple(dict.fromkeys((self.en, *self.zh, *self.variants)))


@dataclass(frozen=True)
class Glossary:
    """The terms of one file, in its order. No form belongs to two of them."""

    name: str  # file name without suffix
    terms: tuple[Term, ...]
    path: Path
    sha256: str  # of the file's bytes

    @classmethod
    def read(cls, path: Path, *, shown: int | None = SHOWN) -> Glossary:
        """Read a glossary file. Raises UserError with all its faults, the first `shown` of them spelled out.

        A byte order mark and Windows line ends are tolerated. `shown` None spells all of them out.
        """
        path = Path(path)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise UserError("no such file", where=path, instead=f"a TSV file with the header {COLUMNS}") from None
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
        faults = _Faults(path)
        terms = tuple(_terms(raw, faults))
        faults.stop(shown)
        return cls(path.stem, terms, path, sha256(raw).hexdigest())

    @classmethod
    def load(cls, name_or_path: str, *, shown: int | None = SHOWN) -> Glossary:
        """`read` a shipped glossary by name, or one of your own by its path. Raises UserError for neither."""
        root = assets.ROOT / "glossaries"
        known = sorted(path.stem for path in root.glob("*.tsv"))
        if name_or_path in known:
            return cls.read(root / f"{name_or_path}.tsv", shown=shown)
        path = Path(name_or_path).expanduser()
        if path.exists() or path.suffix:
            return cls.read(path, shown=shown)
        close, every = get_close_matches(name_or_path, known, n=1), f"one of {known}, or the path of a TSV file"
        instead = f"{close[0]!r} ({every})" if close else every
        raise UserError(f"unknown glossary {name_or_path!r}", instead=instead)


def is_chinese(form: str) -> bool:
    """Whether a form holds a Chinese character: "逾期" and "A股" do, "GDP" does not."""
    return _CHINESE.search(form) is not None


@dataclass
class _Faults:
    """Everything wrong with one file."""

    path: Path
    found: list[tuple[int, str, str]] = field(default_factory=list)  # line, what, instead

    def add(self, line: int, what: str, instead: str) -> None:
        self.found.append((line, what, instead))

    def stop(self, shown: int | None) -> None:
        """Raise what was found, if anything, as one UserError, in the order of lines."""
        if len(self.found) == 1:
            line, what, instead = self.found[0]
            raise UserError(what, where=f"{self.path}:{line}", instead=instead)
        if self.found:
            ordered = sorted(self.found, key=lambda fault: fault[0])
            lines = [str(UserError(what, where=f"line {n}", instead=instead)) for n, what, instead in ordered[:shown]]
            lines += [f"and {len(ordered) - len(lines):,} more"] * (len(lines) < len(ordered))
            raise UserError("\n  ".join((f"{len(ordered):,} faults", *lines)), where=self.path)


def _terms(raw: bytes, faults: _Faults) -> Iterator[Term]:
    """The terms of the rows without fault; the other rows go to `faults`."""
    lines = _lines(raw, faults)
    if not raw.removeprefix(BOM_UTF8).strip():
        faults.add(1, "the file is empty", f"the header {HEADER!r}, then one term a line")
        return
    if len(lines) == 1 and not faults.found:
        faults.add(1, "no line after the header", "one term a line")
    if not _header(lines, faults):
        return
    ids: dict[str, int] = {}  # → line
    owners: dict[str, int] = {}  # form → line
    for number, line in lines[1:]:
        cells, before = line.split("\t"), len(faults.found)
        for what, instead in _row_problems(line, cells):
            faults.add(number, what, instead)
        if len(cells) == len(COLUMNS):
            _unique(number, cells, ids, owners, faults)
        if len(faults.found) == before:
            yield Term(cells[0], cells[1], _split(cells[2]), _split(cells[3]), cells[4], cells[5])


def _lines(raw: bytes, faults: _Faults) -> list[tuple[int, str]]:
    """Numbered lines. Those that are not UTF-8 are left out and make one fault, however many they are.

    None are left when most are not: GB18030 for 债券 happens to be good UTF-8, for something else.
    """
    pieces = raw.removeprefix(BOM_UTF8).split(b"\n")
    if not pieces[-1]:  # what follows the last line's end
        pieces.pop()
    lines, bad = [], []
    for number, piece in enumerate(pieces, 1):
        try:
            lines.append((number, piece.removesuffix(b"\r").decode("utf-8")))
        except UnicodeDecodeError as error:
            bad.append((number, error.start))
    if bad:
        number, byte = bad[0]
        others = len(bad) - 1
        rest = f"; {others:,} more line{'s are' if others > 1 else ' is'} not UTF-8 either" if others else ""
        faults.add(number, f"not UTF-8 at byte {byte} of the line{rest}", "save it as UTF-8")
    return lines if len(bad) <= sum(not line.isascii() for _, line in lines) else []


def _header(lines: list[tuple[int, str]], faults: _Faults) -> bool:
    """Whether the rows can be judged: six columns, in the known order as far as their names are known."""
    if not lines or lines[0][0] != 1:  # not UTF-8, which has been said
        return False
    names = lines[0][1].split("\t")
    if tuple(names) != COLUMNS:
        faults.add(1, f"wrong header {lines[0][1][:80]!r}", f"{HEADER!r}, separated by tabs")
    return len(names) == len(COLUMNS) and all(a == b or a not in COLUMNS for a, b in zip(names, COLUMNS, strict=True))


def _row_problems(line: str, cells: list[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with one row by itself, each with its remedy."""
    if not line.strip():
        yield "an empty line", "delete it"
        return
    if len(cells) != len(COLUMNS):
        yield (
            f"{len(cells)} column{'s' * (len(cells) != 1)}, not {len(COLUMNS)}",
            f"{', '.join(COLUMNS)}, one tab between each; no tab or line break inside a cell",
        )
        return
    for column, cell in zip(COLUMNS, cells, strict=True):
        if not cell.strip():
            if cell or column != "variants":
                yield f"{column!r} is empty", "a value" if column != "variants" else "nothing at all, no space either"
            continue
        for form in cell.split(SEVERAL) if column in ("zh", "variants") else (cell,):
            yield from _text_problems(column, form)
            if column in ("en", "zh", "variants") and form:
                yield from _form_problems(column, form)
    if cells[0].strip() and not _ID.fullmatch(cells[0]):
        yield f"bad id {cells[0]!r}", "lower-case letters a-z, digits and hyphens: non-performing-loan"


def _text_problems(column: str, text: str) -> Iterator[tuple[str, str]]:
    """Whitespace and characters that no cell may hold."""
    if not text:
        yield f"an empty form in {column!r}", f"one {SEVERAL} between two forms, none at either end"
    for char in dict.fromkeys(text) if not text.isprintable() or "\ufffd" in text else ():
        if not char.isprintable() or char == "\ufffd":
            name = unicodedata.name(char, "a control character")
            yield f"{column!r} {text!r} holds U+{ord(char):04X} ({name})", "delete it, or a plain space"
    if text != text.strip(" "):
        yield f"{column!r} {text!r} begins or ends with a space", "no space at either end"
    if "  " in text:
        yield f"{column!r} {text!r} holds two spaces in a row", "one space"
    if not unicodedata.is_normalized("NFC", text):
        yield f"{column!r} {text!r} is not in Unicode normal form C", unicodedata.normalize("NFC", text)


def _form_problems(column: str, form: str) -> Iterator[tuple[str, str]]:
    """What makes a well-written text no form of its column."""
    if not any(char.isalpha() for char in form):
        yield f"{column!r} {form!r} has no letter", "a word"
    elif column == "en" and is_chinese(form):
        yield f"'en' {form!r} is Chinese", "the standard English term; Chinese forms go into zh or variants"
    elif column == "zh" and not is_chinese(form):
        yield f"'zh' {form!r} is not Chinese", "Chinese terms; English forms go into en or variants"
    if column == "en" and SEVERAL in form:
        yield f"'en' {form!r} holds several terms", "the standard one; the others go into variants"
    if column == "zh" and _OLD.search(form):  # old statutes spell so: a variant may too
        yield f"'zh' {form!r} has the old character 帐", f"{_OLD.sub('账', form)}; the old form may be a variant"


def _unique(number: int, cells: list[str], ids: dict[str, int], owners: dict[str, int], faults: _Faults) -> None:
    """Enter the row's id and forms; told apart exactly, as ARM and arm are two terms."""
    if cells[0] and ids.setdefault(cells[0], number) != number:
        faults.add(number, f"id {cells[0]!r} is that of line {ids[cells[0]]} too", "an id of its own")
    own: set[str] = set()
    for form in filter(None, (cells[1], *_split(cells[2]), *_split(cells[3]))):
        if form in own:
            faults.add(number, f"{form!r} is repeated in its own row", "each form once")
        elif owners.setdefault(form, number) != number:
            faults.add(number, f"{form!r} belongs to line {owners[form]} too", "each form in one row: one sense a row")
        own.add(form)


def _split(cell: str) -> tuple[str, ...]:
    return tuple(cell.split(SEVERAL)) if cell else ()
