"""A tiny medical domain: a graph of six concepts, notes that name them, and a run that has learned to find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainkit import recipes
from domainkit.data.jsonl import write_jsonl
from domainkit.types import Example, Relation, Span
from tests.test_graph import write_graph
from tests.tiny import make_base

DRUGS = {"aspirin": "D1", "lithium": "D2", "heparin": "D3"}
DISEASES = {"tremor": "D4", "heart failure": "D5", "nausea": "D6"}
TYPES = ("T109\tOrganic Chemical\tCHEM\tChemical", "T184\tSign or Symptom\tDISO\tDisease")
CONCEPTS = (
    *(f"{id_}\t{name}\t\tT109\t\t" for name, id_ in DRUGS.items()),
    *(f"{id_}\t{name}\t\tT184\t\t" for name, id_ in DISEASES.items()),
)
RELATIONS = ("causes\tChemical\tDisease\tdomainkit\tsilent",)
DOMAIN = """
title = "Clinic"
[training]
graph = "ontology"
depths = [1]
rank = 4
epochs = 4
batch = 4
micro_batch = 4
context = 64
learning_rate = 1e-2
bits = 32
"""
SOURCES = """
[[sources]]
path = "notes.jsonl"
part = "domain"
language = "en"
split = "train"

[[sources]]
path = "held-out.jsonl"
part = "domain"
language = "en"
split = "test"
"""
TASKS = {
    "ner": 'kind = "ner"\ntitle = "Finds drugs and diseases"\nadapter = "reader"\n'
    '[settings]\nlabels = ["Chemical", "Disease"]\noverlap = 16\n',
    "relation": 'kind = "relation"\ntitle = "Finds what drugs cause"\nadapter = "reader"\n'
    '[settings]\nlabels = ["causes"]\nentities = ["Chemical", "Disease"]\noverlap = 16\n',
    "summary": 'kind = "summary"\ntitle = "Sums notes up"\nadapter = "summary"\n'
    '[settings]\nlabels = ["Chemical", "Disease"]\nmax_tokens = 12\n',
}


def note(number: int, sentences: int = 2) -> Example:
    """A note that names a drug and what it does in each sentence; same number, same note."""
    text, spans, pairs = "", list[Span](), set[tuple[str, str]]()
    for i in range(sentences):
        drug, disease = list(DRUGS)[(number + i) % 3], list(DISEASES)[(number // 3 + 2 * i) % 3]
        start = len(text)
        text += f"Patient {number} took {drug} for {i + 2} weeks and had {disease}. "
        for name, label, id_ in ((drug, "Chemical", DRUGS[drug]), (disease, "Disease", DISEASES[disease])):
            at = text.index(name, start)
            spans.append(Span(at, at + len(name), label, id_))
        pairs.add((DRUGS[drug], DISEASES[disease]))
    relations = tuple(Relation(head, "causes", tail) for head, tail in sorted(pairs))
    summary = f"{text[spans[1].start : spans[1].end]} again" if spans else ""
    return Example(text, tuple(spans), relations, summary, id=f"note {number}")


@dataclass(frozen=True)
class Clinic:
    """A base, a domain, a finished run; the cache is the test's own."""

    folder: Path
    base: Path
    domain: Path
    run: Path

    def request(self, out: Path, **changes: object) -> recipes.Request:
        return replace(recipes.Request(str(self.domain), base=str(self.base), out=out), **changes)


def make_domain(folder: Path, tasks: Sequence[str] = tuple(TASKS)) -> Path:
    write_graph(folder / "ontology", CONCEPTS, (), TYPES, RELATIONS)
    (folder / "domain.toml").write_text(DOMAIN, encoding="utf-8")
    for name in tasks:
        (folder / f"{name}.toml").write_text(TASKS[name] + SOURCES, encoding="utf-8")
    write_jsonl(folder / "notes.jsonl", map(note, range(18)))
    write_jsonl(folder / "held-out.jsonl", map(note, range(18, 24)))
    return folder


def make_clinic(folder: Path) -> Clinic:
    """A clinic with a finished run; $DOMAINKIT_CACHE must point into a test's folder."""
    clinic = Clinic(folder, make_base(folder / "base"), make_domain(folder / "clinic"), folder / "run")
    recipes.finetune(clinic.request(clinic.run))
    return clinic


def by_dictionary(kind: Any, top: Any, batch: Any, labels: Sequence[str]) -> list[tuple[int, ...]]:
    """Stands in for `ner.Kind.predict`: tags as the graph's names say, so that it is known what has to be found."""
    return [tuple(hint.bit_length() for hint in s.hints) for _, s in batch.placed]
