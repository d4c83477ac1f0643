"""A small graph and documents over it, that the tests of linking share."""

from __future__ import annotations

from pathlib import Path

from domainkit.graph import ConceptGraph
from domainkit.types import Example, Span
from tests.test_graph import RELATIONS, TYPES, write_graph

CONCEPTS = (
    "D1\tHeart Diseases\tcardiac disease\tT047\t\t",
    "D2\tMyocardial Infarction\tHeart Attack|MI\tT047\tD1\t",
    "D3\tAspirin\tAcetylsalicylic Acid\tT109\t\t",
    "D4\tHeart Failure\tcardiac failure|Congestive Heart Failure\tT047\tD1\t",
    "D5\tOesophageal Neoplasms\tNeoplasms, Esophageal\tT047\t\t",
    "D6\tTacrolimus\tFK506\tT109\t\t",
    "D7\tKidney Failure, Acute\tAcute Renal Failure\tT047\t\t",
    "D8\tInsulin\t\tT116\t\t",
    "D9\tMilrinone\tMI\tT109\t\t",
)


def clinic(folder: Path) -> ConceptGraph:
    return ConceptGraph.load(str(write_graph(folder, CONCEPTS, (), TYPES, RELATIONS)))


def document(text: str, *named: tuple[str, str, str | None], id: str = "") -> Example:
    """A document with a span at the first place of each (mention, label, concept ids)."""
    spans = (Span(text.index(name), text.index(name) + len(name), label, ids) for name, label, ids in named)
    return Example(text, spans=tuple(spans), id=id)
