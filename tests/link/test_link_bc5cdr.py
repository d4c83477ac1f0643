"""Linking on the shipped graph: a part of BC5CDR's training set teaches, another part is asked."""

from __future__ import annotations

from itertools import islice

import pytest

from domainkit import assets
from domainkit.data.read import read
from domainkit.graph import ConceptGraph
from domainkit.link import Candidate, Linker
from domainkit.spanscore import link_accuracy
from domainkit.types import Example

LEARNED, HELD = 160, 60  # documents
UNTAUGHT_FLOOR, TAUGHT_FLOOR = 0.75, 0.85


@pytest.fixture(scope="module")
def graph() -> ConceptGraph:
    return ConceptGraph.load("medical")


@pytest.fixture(scope="module")
def documents() -> list[Example]:
    path = assets.ROOT / "tasks" / "medical" / "data" / "bc5cdr-train.jsonl.gz"
    return list(islice(read(path), LEARNED + HELD))


def accuracy(linker: Linker, held: list[Example]) -> float:
    found = [linker.link_document(one) for one in held]
    return link_accuracy(held, found, seed=0)[0]["link_accuracy"].value


def test_the_graph_alone(graph: ConceptGraph, documents: list[Example]) -> None:
    linker = Linker(graph)
    (best, *_) = linker.link("MI", label="Disease", text="Myocardial infarction (MI) was rare.")
    assert best == Candidate("D009203", best.score, "abbreviation") and best.score > 0.9
    assert linker.link("xyzzy", label="Disease") == []
    assert accuracy(linker, documents[LEARNED:]) >= UNTAUGHT_FLOOR


def test_documents_teach(graph: ConceptGraph, documents: list[Example]) -> None:
    assert accuracy(Linker.taught(graph, documents[:LEARNED]), documents[LEARNED:]) >= TAUGHT_FLOOR
