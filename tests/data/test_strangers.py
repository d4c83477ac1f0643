"""What annotation holds that nobody knows is counted and named."""

from __future__ import annotations

from pathlib import Path

from domainkit.data.strangers import strangers
from domainkit.graph import ConceptGraph
from domainkit.types import Example, Span
from tests.test_graph import write_graph

LABELS = ("Chemical", "Disease")


def example(*spans: tuple[str, str | None]) -> Example:
    return Example("x" * 9, tuple(Span(i, i + 1, label, concept) for i, (label, concept) in enumerate(spans)))


def test_known_annotation_is_not_told(tmp_path: Path) -> None:
    graph = ConceptGraph.load(str(write_graph(tmp_path / "mine")))
    known = [example(("Chemical", "D3"), ("Disease", "MESH:D1,MONDO:4"), ("Disease", None)), example()]
    assert list(strangers(known, LABELS, graph)) == list(strangers(known, LABELS, None)) == []


def test_labels_and_ids_that_nobody_knows(tmp_path: Path) -> None:
    graph = ConceptGraph.load(str(write_graph(tmp_path / "mine")))
    found = [
        example(("Chemcial", "D3"), ("Chemcial", "D77"), ("Gene", None)),
        example(("Disease", "D1,D98"), ("Chemical", "D99"), ("Chemical", "D99")),
    ]
    assert list(strangers(found, LABELS, graph)) == [
        "3 spans are left out, as their labels are not asked for: Chemcial (2; is it 'Chemical'?), Gene (1)",
        "2 of 3 concept ids are unknown to mine: D99, D98",
    ]
    assert len(list(strangers(found, LABELS, None))) == 1


def test_many_are_counted(tmp_path: Path) -> None:
    (told,) = strangers([example(*((f"label {i}", None) for i in range(9)))], LABELS, None)
    assert told.startswith("9 spans") and told.endswith("label 4 (1) and 4 more")
