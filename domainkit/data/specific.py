"""Of relations that say the same in general and in particular, those in particular."""

from __future__ import annotations

from collections.abc import Sequence

from domainkit.graph import MESH, ConceptGraph
from domainkit.types import Relation


def most_specific(told: Sequence[Relation], graph: ConceptGraph) -> tuple[Relation, ...]:
    """The relations of a document without those that another one of the same label says more exactly.

    "Causes heart disease" is no news beside "causes myocardial infarction": the annotators of BC5CDR were told to take
    the most specific concepts (Li et al. 2016, doi 10.1093/database/baw068). Concepts that the graph does not know are
    kinds of nothing.
    """
    kinds = [(set(graph.kinds_of(one.head)), set(graph.kinds_of(one.tail))) for one in told]
    names = [(one.head.removeprefix(MESH), one.tail.removeprefix(MESH)) for one in told]
    return tuple(
        one for one, (head, tail) in zip(told, names, strict=True)
        if not any(
            other.label == one.label and name != (head, tail) and head in heads and tail in tails
            for other, name, (heads, tails) in zip(told, names, kinds, strict=True)
        )
    )  # fmt: skip
