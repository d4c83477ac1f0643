"""Rows of the glossary in the making, and how they share forms out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from finance_glossary.evidence import spellings
from finance_glossary.normal import is_chinese


@dataclass(frozen=True)
class Row:
    """A line of the glossary in the making."""

    id: str
    en: str
    zh: tuple[str, ...]
    variants: tuple[str, ...] = ()
    category: str = ""
    source: str = ""
    score: float = 0.0
    edited: bool = False  # looked at by somebody, who kept or mended it

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.en, *self.zh, *self.variants)))


def same(form: str) -> str:
    """What two forms share when they count as one: case matters only in abbreviations."""
    return form if is_chinese(form) or sum(map(str.isupper, form)) > len(form) / 3 else form.lower()


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows of one English term joined into the first of them."""
    found: dict[str, Row] = {}
    for row in rows:
        before = found.setdefault(row.id, row)
        if before is not row:
            zh = tuple(dict.fromkeys((*before.zh, *row.zh)))
            more = (row.en,) if row.en != before.en else ()
            variants = tuple(dict.fromkeys((*before.variants, *more, *row.variants)))
            source = "+".join(dict.fromkeys((*before.source.split("+"), *row.source.split("+"))))
            found[row.id] = replace(before, zh=zh, variants=variants, source=source)
    return list(found.values())


def settled(rows: list[Row], weight: Callable[[Row], float]) -> list[Row]:
    """Every form in one row only.

    A form goes to the row that names it so (en), else to one whose standard Chinese it is, else to one that
    has it as a further term, else as a variant; among equals to the row of greater `weight`. A row left without
    Chinese goes; one by hand gives its English to the row that took its standard term.
    """
    claims: dict[str, tuple[tuple[float, float, int], int]] = {}
    for number, row in enumerate(rows):
        for rank, forms in enumerate(((row.en,), row.zh[:1], row.zh[1:], row.variants)):
            for form in forms:
                claim = ((rank, -weight(row), number), number)
                claims[same(form)] = min(claims.get(same(form), claim), claim)
    owner = {form: number for form, (_, number) in claims.items()}
    kept: dict[int, Row] = {}
    for number, row in enumerate(rows):
        own = [form for form in _once(row.forms) if owner[same(form)] == number]
        zh = tuple(form for form in row.zh if form in own)
        if row.en in own and zh:
            kept[number] = replace(row, zh=zh, variants=tuple(f for f in own if f != row.en and f not in zh))
    if len(kept) == len(rows):
        return list(kept.values())
    left = {number: rows[number] for number in kept}
    for number in sorted(set(range(len(rows))) - set(kept)):
        row, index = rows[number], owner[same(rows[number].zh[0])]
        # Dictionaries call synonyms what is only akin (equity ratio, debt-to-equity ratio), so theirs just go.
        if owner[same(row.en)] == number and index in left and row.source.startswith("hand"):
            own = [row.en, *(form for form in row.variants if owner[same(form)] == number)]
            left[index] = replace(left[index], variants=tuple(dict.fromkeys((*left[index].variants, *own))))
    return settled(list(left.values()), weight)  # once more: what the others had claimed is free now


def _once(forms: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for form in forms:
        found.setdefault(same(form), form)
    return list(found.values())


def reunited(rows: Iterable[Row]) -> list[Row]:
    """The rows without variants that are another spelling or the plural of another row's English term."""
    rows = list(rows)
    common = (row for row in rows if row.en.split()[-1].islower())  # U.S. Treasuries are not several U.S. Treasury
    home = {same(form): row.id for row in common for form in spellings(row.en)}
    home |= {same(row.en): row.id for row in rows}
    return [
        replace(row, variants=tuple(f for f in row.variants if home.get(same(f)) in (None, row.id))) for row in rows
    ]
