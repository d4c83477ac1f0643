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
    ends = {end for one in told for end in (one.head, one.tail)}
    kinds = {end: {end, *_above(end, graph)} for end in ends}
    return tuple(
        one for one in told
        if not any(
            other.label == one.label
            and (other.head, other.tail) != (one.head, one.tail)
            and one.head in kinds[other.head]
            and one.tail in kinds[other.tail]
            for other in told
        )
    )  # fmt: skip


def _above(id_: str, graph: ConceptGraph) -> tuple[str, ...]:
    """What a concept is a kind of, written as its own id is."""
    bare = id_.removeprefix(MESH)
    prefix = id_[: len(id_) - len(bare)]
    return tuple(prefix + above for above in graph.ancestors(bare)) if bare in graph.concepts else ()
