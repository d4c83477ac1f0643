"""The finance text that terms are looked up in: the shared corpora and the samples, without the held-out part."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainkit.data.mix import split
from domainkit.data.read import read

SAMPLES = Path(__file__).resolve().parents[2] / "tasks" / "finance" / "data"
FINANCE = ("fed.jsonl", "cfpb.jsonl", "statutes-finance.jsonl")
OTHER = ("statutes-general.jsonl",)  # held-out text there must not be read in the shared statutes either
RUN, STEP = 12, 5  # words compared together, and from one comparison to the next
MUCH = 0.2  # of the comparisons: so much in common makes a text a version of a held-out one
HEAD = 200  # characters at the start that tell whether two texts are the same document


@dataclass(frozen=True)
class Corpus:
    """Texts by language; a text is a document, of the regulations a paragraph."""

    en: tuple[str, ...]
    zh: tuple[str, ...]
    general_zh: tuple[str, ...]  # statutes outside finance: they tell generic words from terms, and attest law terms


@dataclass(frozen=True)
class HeldOut:
    """How to recognise the documents that the project tests on."""

    titles: frozenset[str]
    heads: frozenset[str]
    runs: frozenset[tuple[str, ...]]  # every RUN consecutive words of the English ones

    @classmethod
    def read(cls) -> HeldOut:
        titles, heads, runs = set(), set(), set()
        for name in (*FINANCE, *OTHER):
            rows = {row["id"]: row for row in _rows(SAMPLES / name)}
            _, test = split(read(SAMPLES / name))
            heads |= {_head(example.text) for example in test}
            runs |= {run for example in test if example.language == "en" for run in _runs(example.text, 1)}
            titles |= {_title(rows[example.id].get("title", "")) for example in test}
        titles -= {"", _title("Minutes of the Federal Open Market Committee")}
        return cls(frozenset(titles), frozenset(heads), frozenset(runs))

    def has(self, text: str, title: str = "") -> bool:
        if _title(title) in self.titles or _head(text) in self.heads:
            return True
        runs = list(_runs(text, STEP))
        return bool(runs) and sum(run in self.runs for run in runs) > MUCH * len(runs)


def load(shared: Path) -> Corpus:
    """Everything outside the held-out part, each document once."""
    held, finance = HeldOut.read(), shared / "finance"
    laws = [(row["text"], row["title"]) for row in _rows(finance / "cn_laws" / "finance_laws.jsonl.gz")]
    others = [(row["text"], row["title"]) for row in _rows(finance / "cn_laws" / "general_laws.jsonl.gz")]
    english = [*_fed(finance / "fed_speeches"), *_cfpb(finance / "cfpb_regs"), *_tatqa(finance / "tatqa")]
    return Corpus(
        en=_keep([*english, *_samples("fed.jsonl", "cfpb.jsonl")], held),
        zh=_keep([*laws, *_samples("statutes-finance.jsonl")], held),
        general_zh=_keep(others, held),
    )


def training(name: str) -> list[str]:
    """The training part of one sample, as the project splits it."""
    return [example.text for example in split(read(SAMPLES / name))[0]]


def _samples(*names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        yield from ((text, "") for text in training(name))


def _fed(folder: Path) -> Iterator[tuple[str, str]]:
    for row in _rows(folder / "fed_speeches.jsonl.gz"):
        yield row["text"], row["title"]
    held = _held_minutes()
    for row in _rows(folder / "fomc_minutes.jsonl.gz"):
        if row["id"] not in held:
            yield row["text"], ""


def _held_minutes() -> set[str]:
    """Minutes all have one title and begin alike after cleaning: their date tells them apart."""
    _, test = split(read(SAMPLES / "fed.jsonl"))
    return {example.id.removeprefix("minutes:") for example in test if example.id.startswith("minutes:")}


def _cfpb(folder: Path) -> Iterator[tuple[str, str]]:
    for row in _rows(folder / "cfpb_regs.jsonl.gz"):
        yield row["text"], ""


def _tatqa(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.json")):
        for context in json.loads(path.read_text(encoding="utf-8")):
            cells = "\n".join(cell for row in context["table"]["table"] for cell in row if cell)
            yield "\n".join([*(one["text"] for one in context["paragraphs"]), cells]), ""


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _keep(texts: Iterable[tuple[str, str]], held: HeldOut) -> tuple[str, ...]:
    """The texts that are not held out; of texts that begin alike the longest."""
    kept: dict[str, str] = {}
    for text, title in texts:
        if not held.has(text, title):
            kept[_head(text)] = max(kept.get(_head(text), ""), text, key=len)
    return tuple(kept.values())


def _title(title: str) -> str:
    return re.sub(r"\(\d{4}-\d{2}-\d{2}\)$|\W", "", title).lower()


def _runs(text: str, step: int) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    yield from (tuple(words[at : at + RUN]) for at in range(0, len(words) - RUN + 1, step))


def _head(text: str) -> str:
    return re.sub(r"\W", "", text)[:HEAD].lower()
