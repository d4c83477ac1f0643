"""The dictionary sources, read into pairs."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finance_glossary import normal


@dataclass(frozen=True)
class Pair:
    """An English term with its Chinese candidates, the best one first as far as the source knows."""

    en: str
    zh: tuple[str, ...]
    source: str
    rank: int = 0  # general frequency rank of a single English word, 0 when unknown
    category: str = ""


def pairs(terms: Path) -> list[Pair]:
    """Every clean pair of every source, the most trusted source first."""
    found = [*_banking(terms / "zh_en_banking"), *_zvt(terms / "zvt"), *_currencies(terms / "cldr_currencies")]
    return [*found, *_ecdict(terms / "ecdict")]


def fibo(terms: Path) -> frozenset[str]:
    """English names of finance classes, in lower case: evidence that a term belongs here."""
    names = set()
    for row in _table(terms / "fibo" / "fibo_terms.tsv.gz"):
        if row["kind"] == "class":
            names |= {normal.english(name).lower() for name in (row["label_en"], *row["synonyms_en"].split("|"))}
    return frozenset(names - {""})


def thuocl(terms: Path) -> dict[str, int]:
    """Document frequency of Chinese finance and law words."""
    found: dict[str, int] = {}
    for name in ("caijing", "law"):
        for line in (terms / "thuocl" / f"THUOCL_{name}.txt").read_text(encoding="utf-8").splitlines():
            word, _, count = line.partition("\t")
            if count.strip().isdigit():
                found[word.strip()] = max(found.get(word.strip(), 0), int(count))
    return found


def _table(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _pair(en: str, zh: list[str], source: str, rank: int = 0, category: str = "") -> Iterator[Pair]:
    clean = tuple(dict.fromkeys(filter(None, map(normal.chinese, zh))))
    if clean and normal.english(en):
        yield Pair(normal.english(en), clean, source, rank, category)


def _ecdict(folder: Path) -> Iterator[Pair]:
    for row in _table(folder / "ecdict_econ.tsv.gz"):
        ranks = [int(row[key]) for key in ("bnc_rank", "frq_rank") if int(row[key] or 0)]
        torn = set(re.findall(r"\([^()]\)([^,()]+)", row["raw_translation"]))  # "(银)行人员" gave "行人员"
        zh = [one for one in row["zh_candidates"].split("|") if one not in torn]
        yield from _pair(row["en"], zh, "ecdict", min(ranks, default=0))


def _banking(folder: Path) -> Iterator[Pair]:
    for path in sorted(folder.glob("*_terms.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            en, equals, zh = line.partition("=")
            if equals and not line.startswith("#"):
                yield from _pair(en, [zh], "zh_en_banking")


def _zvt(folder: Path) -> Iterator[Pair]:
    """Statement items whose English, an identifier in the source, is made of whole words."""
    short = {"fi", "qoq", "id", "op", "cap", "avg", "pct", "num", "fin", "bs", "incr", "pe", "yoy", "ttm", "net"}
    for row in _table(folder / "zvt_zh_en_fields.tsv"):
        words = row["en_field_name"].removeprefix("fi ").split()
        if len(words) > 1 and not short & set(words) and all(len(word) > 1 for word in words):
            yield from _pair(" ".join(words), [row["zh"]], "zvt")


def _currencies(folder: Path) -> Iterator[Pair]:
    """Today's currencies; bracketed years mark those of the past."""
    for row in _table(folder / "currencies.tsv"):
        if "(" not in row["en"] + row["zh_hans"] and "（" not in row["zh_hans"] and not row["code"].startswith("X"):
            *country, unit = row["en"].split()
            yield from _pair(" ".join([*country, unit.lower()]), [row["zh_hans"]], "cldr", category="currency")
