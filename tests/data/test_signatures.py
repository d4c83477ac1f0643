"""What relations may link, in the words of a corpus."""

from __future__ import annotations

import pytest

from domainkit.data.signatures import Outside, Signatures, entity_labels, stated
from domainkit.graph import ConceptGraph
from domainkit.types import Example, Relation, Span, UserError

ENTITIES = ("ChemicalEntity", "Disease", "Gene")
NAMES = {"CID": "causes", "ChemicalEntity": "Chemical"}


@pytest.fixture(scope="module")
def graph() -> ConceptGraph:
    return ConceptGraph.load("medical")


def test_the_type_table_in_the_words_of_the_corpus(graph: ConceptGraph) -> None:
    made = Signatures.of_graph(graph, ("Bind", "CID"), ENTITIES, names=NAMES, where="here")
    linked = {(made.relations[r], ENTITIES[h], ENTITIES[t]) for r, h, t in zip(*made.allowed.nonzero(), strict=True)}
    assert linked == {
        ("CID", "ChemicalEntity", "Disease"),
        *(("Bind", h, t) for h in ENTITIES[::2] for t in ENTITIES[::2]),
    }
    reversed_ = made.both_ways().allowed
    assert reversed_[1, 1, 0] and reversed_[1, 0, 1] and not reversed_[1, 1, 1] and not made.allowed[1, 1, 0]
    assert Signatures.free(("a",), ("b", "c")).allowed.tolist() == [[[True, True], [True, True]]]


def test_what_the_table_is_silent_of_is_not_ruled_out(graph: ConceptGraph) -> None:
    made = Signatures.of_graph(graph, ("CID", "cures"), ("Chemical", "Disease", "Drug"), names=NAMES, where="here")
    assert made.links("CID") == [
        "Chemical → Disease", "Chemical → Drug", "Disease → Drug", "Drug → Chemical", "Drug → Disease", "Drug → Drug",
    ]  # fmt: skip
    assert len(made.links("cures")) == 9


def test_a_name_that_the_table_does_not_know_is_a_slip(graph: ConceptGraph) -> None:
    wanted = "here: names: the graph's type table does not know 'brings'; instead: CID = one of .*'causes'"
    with pytest.raises(UserError, match=wanted):
        Signatures.of_graph(graph, ("CID",), ("Disease",), names={"CID": "brings"}, where="here")


def test_relations_against_the_table_are_found(graph: ConceptGraph) -> None:
    made = Signatures.of_graph(graph, ("CID",), ("ChemicalEntity", "Disease"), names=NAMES, where="here")
    spans = (
        Span(0, 4, "ChemicalEntity", "C1"), Span(5, 9, "Disease", "D1,D2"), Span(10, 12, "Disease", "C1"),
        Span(12, 14, "ChemicalEntity", "C1"), Span(14, 16, "Species", "S1"), Span(16, 18, "Disease"),
    )  # fmt: skip
    relations = (
        Relation("C1", "CID", "D1"), Relation("D1,D2", "CID", "C1"), Relation("C1", "CID", "S1"),
        Relation("D1", "Bind", "C1"), Relation("16:18", "CID", "D1"),
    )  # fmt: skip
    document = Example("x" * 20, spans, relations)
    assert list(made.outside(document)) == [
        Outside("D1", "CID", "C1", ("Disease", "ChemicalEntity")),
        Outside("D2", "CID", "C1", ("Disease", "ChemicalEntity")),
        Outside("C1", "CID", "S1", ("ChemicalEntity", "Species")),
        Outside("16:18", "CID", "D1", ("Disease", "Disease")),
    ]


def test_a_concept_has_the_label_of_most_of_its_mentions() -> None:
    spans = [Span(i, i + 1, label, "C1,C2" if i else "C1") for i, label in enumerate(("a", "b", "b"))]
    assert entity_labels(Example("xyz", tuple(spans))) == {"C1": "b", "C2": "b"}


def test_ids_joined_are_relations_of_each() -> None:
    assert list(stated([Relation("a,b", "r", "c,d")])) == [
        ("a", "r", "c"), ("a", "r", "d"), ("b", "r", "c"), ("b", "r", "d"),
    ]  # fmt: skip
