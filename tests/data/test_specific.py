"""What is told in particular is not told in general as well."""

from __future__ import annotations

import pytest

from domainkit.data.specific import most_specific
from domainkit.graph import ConceptGraph
from domainkit.types import Relation

HEART, INFARCTION, TREMOR = "D006331", "D009203", "D014202"  # a myocardial infarction is a heart disease
COCAINE, LITHIUM = "D003042", "D008094"


@pytest.fixture(scope="module")
def graph() -> ConceptGraph:
    return ConceptGraph.load("medical")


def test_the_more_general_of_two_is_left_out(graph: ConceptGraph) -> None:
    told = [Relation(COCAINE, "CID", one) for one in (HEART, INFARCTION, TREMOR)]
    assert most_specific(told, graph) == tuple(told[1:])


@pytest.mark.parametrize("prefix", ["", "MESH:"])
def test_ids_may_name_their_vocabulary(graph: ConceptGraph, prefix: str) -> None:
    told = [Relation(prefix + COCAINE, "CID", prefix + one) for one in (INFARCTION, HEART)]
    assert most_specific(told, graph) == (told[0],)


@pytest.mark.parametrize(
    "other",
    [
        Relation(LITHIUM, "CID", INFARCTION),
        Relation(COCAINE, "treats", INFARCTION),
        Relation(COCAINE, "CID", "made-up"),
    ],
    ids=["another chemical", "another relation", "an unknown concept"],
)
def test_what_says_something_else_stays(graph: ConceptGraph, other: Relation) -> None:
    told = (Relation(COCAINE, "CID", HEART), other)
    assert most_specific(told, graph) == told


def test_twice_the_same_stays(graph: ConceptGraph) -> None:
    told = (Relation(COCAINE, "CID", HEART), Relation(COCAINE, "CID", HEART))
    assert most_specific(told, graph) == told
