"""Entries and edits written by hand: read whole, every fault told with its line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from domainkit.fill import Faults
from finance_glossary import normal
from finance_glossary.rows import Row

HAND = ("en", "zh", "variants", "category")
EDITS = ("id", "action", "value", "why")
ACTIONS = ("keep", "drop", "en", "zh", "variants", "category")
FIRST = ("modern", "statutes", "consumer", "macro")  # whose Chinese is the standard when files differ


@dataclass(frozen=True)
class Edit:
    """One correction of one row."""

    id: str
    action: str
    value: str
    where: str  # file:line


def entries(folder: Path) -> list[Row]:
    """The rows of hand-*.tsv, the most trusted file first. Raises UserError with all faults."""
    faults, rows = Faults(str(folder)), []
    for path in sorted(folder.glob("hand-*.tsv"), key=_place):
        for where, (en, zh, variants, category) in _lines(path, HAND, faults):
            en, forms, others = normal.plain(en), _forms(zh), _forms(variants)
            if not en or "|" in en or normal.is_chinese(en) or not normal.slug(en):
                faults.add(f"{where}: bad English term {en!r}", "one English term")
            if not forms or not all(map(normal.is_chinese, forms)):
                faults.add(f"{where}: bad Chinese {zh!r}", "Chinese terms, separated by |")
            forms = tuple(dict.fromkeys(map(normal.modern, forms)))
            rows.append(Row(normal.slug(en), en, forms, others, _word(category), "hand"))
    faults.stop()
    return rows


def edits(folder: Path, known: Iterable[str]) -> list[Edit]:
    """The edits of edits-*.tsv; `known` are the ids that can be edited. Raises UserError with all faults."""
    faults, known, found = Faults(str(folder)), set(known), dict[tuple[str, str], Edit]()
    for path in sorted(folder.glob("edits-*.tsv")):
        for where, (id_, action, value, _) in _lines(path, EDITS, faults):
            edit = Edit(id_, action, normal.plain(value), where)
            for what, instead in _wrong(edit, known):
                faults.add(f"{where}: {what}", instead)
            before = found.setdefault((id_, action), edit)
            if before.value != edit.value:
                faults.add(f"{where}: {id_!r} has another {action!r} at {before.where}", "one of the two")
    faults.stop()
    return list(found.values())


def apply(rows: Iterable[Row], changes: Iterable[Edit]) -> list[Row]:
    """The rows after the edits; a row with a new English term has a new id."""
    by_id: dict[str, list[Edit]] = {}
    for edit in changes:
        by_id.setdefault(edit.id, []).append(edit)
    changed = []
    for row in rows:
        mine = by_id.get(row.id, [])
        if not any(edit.action == "drop" for edit in mine):
            for edit in mine:
                row = _changed(row, edit)
            changed.append(row)
    return changed


def _changed(row: Row, edit: Edit) -> Row:
    if edit.action == "keep":
        return replace(row, edited=True)
    if edit.action == "en":
        return replace(row, id=normal.slug(edit.value), en=edit.value, edited=True)
    if edit.action == "category":
        return replace(row, category=_word(edit.value), edited=True)
    return replace(row, **{edit.action: _forms(edit.value)}, edited=True)


def _wrong(edit: Edit, known: set[str]) -> Iterator[tuple[str, str]]:
    if edit.id not in known:
        yield f"unknown id {edit.id!r}", "an id of the candidates or of a hand-written entry"
    if edit.action not in ACTIONS:
        yield f"unknown action {edit.action!r}", f"one of {ACTIONS}"
    if not edit.value and edit.action in ("en", "zh", "category"):
        yield f"no value for {edit.action!r}", "the new value"
    if edit.action == "zh" and not all(map(normal.is_chinese, edit.value.split("|"))):
        yield f"bad Chinese {edit.value!r}", "Chinese terms, separated by |"
    if edit.action == "en" and (normal.is_chinese(edit.value) or "|" in edit.value):
        yield f"bad English term {edit.value!r}", "one English term"


def _lines(path: Path, columns: tuple[str, ...], faults: Faults) -> Iterator[tuple[str, list[str]]]:
    """(file:line, cells) of each row; missing cells at the end are empty."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    if tuple(header.split("\t")) != columns:
        faults.add(f"{path.name}:1: wrong header {header!r}", "\t".join(columns))
        return
    for number, line in enumerate(lines, 2):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) > len(columns):
            faults.add(f"{path.name}:{number}: {len(cells)} columns", f"{len(columns)}: {', '.join(columns)}")
        elif line.strip():
            yield f"{path.name}:{number}", [*cells, *[""] * (len(columns) - len(cells))]


def _forms(cell: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (normal.plain(form) for form in cell.split("|")))))


def _word(category: str) -> str:
    """A category is one lower-case word, parts joined by hyphens."""
    return "-".join(category.lower().split()) or "business"


def _place(path: Path) -> tuple[int, str]:
    name = path.stem.removeprefix("hand-")
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)
