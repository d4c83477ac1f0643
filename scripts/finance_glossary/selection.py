"""From pairs and entries to rows: merge by English term, choose Chinese, settle conflicts, find variants, rank."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache

from finance_glossary import attest, normal
from finance_glossary.costs import costs
from finance_glossary.evidence import FOLDER, Evidence, old_forms, spellings, word_list
from finance_glossary.rows import Row, merged, reunited, same, settled
from finance_glossary.sources import Pair

FAIR = 0.7  # alignment from which an English term may be a variant in another row
GOOD = 0.85  # alignment from which a Chinese form may be a second term
COMMON = 7000  # single words of a better general frequency rank are generic, unless FIBO or keep.txt has them
OTHER = "business"  # the category of terms in which no finance word is found
SURE = 4  # occurrences from which capitals in text make a name
TRUSTED = ("zh_en_banking", "cldr")
MASS = word_list("mass.txt")  # heads without plural, or whose plural means something else


def merge(pairs: Iterable[Pair], evidence: Evidence) -> list[Pair]:
    """One pair per English term: spellings that differ in hyphens, case or number together."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        *front, last = pair.en.lower().replace("-", " ").split()
        groups[" ".join([*front, normal.singular(last)])].append(pair)
    merged = []
    for group in groups.values():
        zh = dict.fromkeys(zh for pair in group for zh in pair.zh)
        trusted = [pair for pair in group if pair.source in TRUSTED]
        zh = dict.fromkeys(zh for pair in trusted for zh in pair.zh) or zh
        source = "+".join(dict.fromkeys(pair.source for pair in (trusted or group)))
        category = next((pair.category for pair in group if pair.category), "")
        best = min(group, key=lambda pair: (-evidence.en.of(pair.en), len(pair.en), pair.en))
        en = _as_written(best.en, evidence)
        merged.append(Pair(en, tuple(zh), source, max(pair.rank for pair in group), category))
    return merged


def _as_written(en: str, evidence: Evidence) -> str:
    """Singular unless the plural is far more usual, in the case met most often."""
    *front, last = en.split()
    single = " ".join([*front, normal.singular(last)])
    if 5 * evidence.en.of(single) >= evidence.en.of(en):
        en = single if evidence.en.of(single) or not evidence.en.of(en) else en
    seen = evidence.en.surface.get(attest.key(en), "")
    if seen and seen.lower() == en.lower() and not seen.isupper():
        usual = seen.islower() or (" " in en and evidence.en.of(en) >= SURE)
        en = seen if usual else en if any(map(str.isupper, en)) and " " not in en else en.lower()
    return en


def choose(pair: Pair, evidence: Evidence) -> list[tuple[float, str]]:
    """The Chinese candidates worth having, best first: attested ones, else the first of an attested English term."""
    known = evidence.attested_en(pair.en) > 0 or pair.source in TRUSTED or pair.en.lower() in evidence.classes
    rated = []
    for place, zh in enumerate(pair.zh):
        seen = evidence.attested_zh(zh)
        fit = evidence.aligner.score(pair.en, zh)
        if not (seen or known):
            continue
        rated.append((2 * fit + 0.25 * min(math.log1p(seen), 5) - 0.2 * place - 0.8 * ("的" in zh), zh))
    return sorted(rated, key=lambda one: (-one[0], one[1]))


def rate(pair: Pair, zh: str, evidence: Evidence) -> float:
    """How sure and how useful the row is."""
    fit = evidence.aligner.score(pair.en, zh)
    en, seen = evidence.attested_en(pair.en), evidence.attested_zh(zh)
    saved = math.log1p(en * (_cost(" " + pair.en) - 1)) + math.log1p(seen * (_cost(zh) - 1))
    words = len(pair.en.split())
    score = 4 * fit + 0.3 * saved + 1.5 * (en > 0) + 1.5 * (seen > 0) + 0.7 * (pair.en.lower() in evidence.classes)
    score -= 3.0 * (_category(pair.en, zh) == OTHER) + 2.0 * (fit < 0.6)
    score += 4 * (pair.source in TRUSTED[:1]) + 0.5 * (pair.source in TRUSTED)
    score -= (
        (1.5 + 3.0 * (fit < 0.75 or not pair.rank)) * (words == 1)
        + 1.5 * ("的" in zh)
        + 0.7 * max(0, len(zh) - 8)
        + 0.5 * max(0, words - 4)
    )
    return (
        score - 1.5 * (len(zh) < len([w for w in pair.en.split() if len(w) > 3])) - 1.0 * (len(zh) == 2 and words > 2)
    )


@cache
def _cost(text: str) -> int:
    return costs([text])[0]


def dictionary(pairs: Iterable[Pair], evidence: Evidence) -> list[Row]:
    """The candidates of the dictionaries, best first, each Chinese form with one English term."""
    pool = []
    for pair in merge(pairs, evidence):
        rated = choose(pair, evidence)
        if rated and not _common(pair, evidence):
            pool.append((rate(pair, rated[0][1], evidence), pair, [zh for _, zh in rated]))
    pool.sort(key=lambda one: (-one[0], len(one[1].en), one[1].en))
    owner: dict[str, int] = {}
    rows: dict[str, Row] = {}
    for score, pair, candidates in pool:
        if attest.key(pair.en) in owner or not normal.slug(pair.en):
            continue
        if candidates[0] in owner:
            _synonym(pair, candidates[0], owner, rows, evidence)
            continue
        free = [zh for zh in candidates if zh not in owner]
        sure = [zh for zh in free[1:] if evidence.zh.of(zh) > 2 and evidence.aligner.score(pair.en, zh) >= GOOD]
        zh = (free[0], *sure[:1])
        category = pair.category or _category(pair.en, free[0])
        row = Row(normal.slug(pair.en), pair.en, zh, (), category, pair.source, round(score, 2))
        owner |= dict.fromkeys((attest.key(form) for form in (pair.en, *zh)), len(rows))
        rows.setdefault(row.id, row)
    return list(rows.values())


def _synonym(pair: Pair, zh: str, owner: dict[str, int], rows: dict[str, Row], evidence: Evidence) -> None:
    """Another English name of a Chinese term that has a row becomes a variant there, if text uses it."""
    row = list(rows.values())[owner[zh]]
    several = min(len(pair.en.split()), len(row.en.split())) > 1
    fits = evidence.aligner.score(pair.en, zh) >= FAIR and row.zh[0] == zh
    if several and fits and evidence.en.docs(pair.en):
        rows[row.id] = replace(row, variants=(*row.variants, pair.en))
        owner[attest.key(pair.en)] = owner[zh]


def glossary(entries: list[Row], candidates: list[Row], wanted: int, evidence: Evidence) -> list[Row]:
    """The entries by hand and the candidates somebody approved and text has, every form in one row.

    If those are fewer than `wanted`, the best of the other candidates fill up.
    """

    def weight(row: Row) -> float:
        return evidence.attested_en(row.en)

    useful = (row for row in candidates if row.edited or not evidence.generic & {row.en.lower(), row.zh[0]})
    candidates = [row if row.edited else _polished(row, evidence) for row in useful]
    by_hand = settled(merged(entries), weight)
    names = {row.id for row in by_hand}
    rest = [row for row in merged(candidates) if row.id not in names]
    best = [row for row in rest if row.edited and evidence.attested(row.forms)]
    others = sorted(set(rest) - set(best), key=lambda row: (-_use(row, evidence), row.id))
    best += others[: max(wanted - len(by_hand) - len(best), 0)]
    rows = settled([*by_hand, *best], lambda row: 1e9 * row.source.startswith("hand") + weight(row))
    return sorted(with_variants(reunited(rows), evidence), key=lambda row: row.id)


def _polished(row: Row, evidence: Evidence) -> Row:
    en = _as_written(row.en, evidence)
    return replace(row, en=en, id=normal.slug(en))


def _use(row: Row, evidence: Evidence) -> float:
    """The score, more for what text has and for what a person looked at and mended."""
    return row.score + 3 * evidence.attested(row.forms) + row.edited


def _common(pair: Pair, evidence: Evidence) -> bool:
    if " " in pair.en or pair.en.lower() in evidence.classes | evidence.keep:
        return False
    return 0 < pair.rank <= COMMON or (not pair.rank and not evidence.attested_en(pair.en))  # else a misprint


def with_variants(rows: Iterable[Row], evidence: Evidence) -> Iterator[Row]:
    """The rows with plurals, other spellings, abbreviations and old characters that text has."""
    rows = list(rows)
    owner = {same(form): number for number, row in enumerate(rows) for form in row.forms}
    for number, row in enumerate(rows):
        found: dict[str, None] = {}
        for form in row.forms:
            if normal.is_chinese(form):
                found |= dict.fromkeys(one for one in old_forms(form) if evidence.zh.of(one))
            elif form == form.lower() or len(form.split()) > 1:
                known = (one for one in spellings(form) if evidence.en.of(one) > 1)
                found |= dict.fromkeys(one for one in known if not _plural(form, one) or _counts(form, evidence))
                found |= dict.fromkeys(filter(None, [evidence.abbreviations.get(form.lower())]))
        new = [form for form in found if same(form) not in owner]
        owner |= dict.fromkeys(map(same, new), number)
        yield replace(row, variants=(*row.variants, *new))


def _plural(form: str, other: str) -> bool:
    """Whether `other` is a plural among the spellings of `form`, rather than the same with other hyphens."""
    return other.replace("-", "").replace(" ", "") != form.replace("-", "").replace(" ", "")


def _counts(form: str, evidence: Evidence) -> bool:
    """Whether the plural means the same: not of names (Ginnie Mae) nor of single words not listed (principals)."""
    if " " not in form:
        return form in evidence.countable
    head = form.partition(" of ")[0].split()[-1]
    return head == head.lower() and not MASS & {head, form.split()[-1]}


@cache
def _categories() -> list[tuple[str, re.Pattern[str]]]:
    with (FOLDER / "categories.tsv").open(encoding="utf-8") as lines:
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["category"], re.compile(row["pattern"])) for row in reader]


def _category(en: str, zh: str) -> str:
    """The category whose words weigh most in both names, the first of the list on a tie."""

    def weight(pattern: re.Pattern[str]) -> int:
        return sum(len(match[0]) for match in pattern.finditer(en)) + 3 * sum(
            len(match[0]) for match in pattern.finditer(zh)
        )

    best = max((weight(pattern), -at, name) for at, (name, pattern) in enumerate(_categories()))
    return best[2] if best[0] else OTHER
