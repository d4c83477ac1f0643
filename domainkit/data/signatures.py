"""What relations may link, by the type table of a concept graph, in the words of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from domainkit.data.overlaps import mentions
from domainkit.graph import ConceptGraph
from domainkit.types import Example, Relation, UserError


@dataclass(frozen=True)
class Outside:
    """A relation between concepts of types that it may not link."""

    head: str
    label: str
    tail: str
    ends: tuple[str, str]  # the entity labels of head and tail


@dataclass(frozen=True, eq=False)
class Signatures:
    """Which entity labels each relation may link."""

    relations: tuple[str, ...]
    entities: tuple[str, ...]
    allowed: np.ndarray  # (relations, entities, entities) bool: head, then tail

    @classmethod
    def free(cls, relations: Sequence[str], entities: Sequence[str]) -> Signatures:
        """Every relation may link anything."""
        shape = (len(relations), len(entities), len(entities))
        return cls(tuple(relations), tuple(entities), np.ones(shape, dtype=bool))

    @classmethod
    def of_graph(cls, graph: ConceptGraph, relations: Sequence[str], entities: Sequence[str], *,
                 names: Mapping[str, str], where: str) -> Signatures:  # fmt: skip
        """What the graph's type table says. names: what it calls a label of the corpus, if it is not the same.

        A label that the table does not know may be linked with anything: what nothing is said of is not ruled out.
        Raises UserError for a name that the table does not know, as that is a slip.
        """
        called = {label: names.get(label, label) for label in (*relations, *entities)}
        known = {*graph.relations, *graph.table.entities}
        for label in (*relations, *entities):
            if label in names and called[label] not in known:
                raise UserError(f"names: the graph's type table does not know {called[label]!r}", where=where,
                                instead=f"{label} = one of {sorted(known)}")  # fmt: skip

        def allows(*triple: str) -> bool:
            return not {*triple} <= known or graph.allows(*triple)

        rows = [[[allows(called[h], called[r], called[t]) for t in entities] for h in entities] for r in relations]
        shape = (len(relations), len(entities), len(entities))
        return cls(tuple(relations), tuple(entities), np.array(rows, dtype=bool).reshape(shape))

    def both_ways(self) -> Signatures:
        """For relations whose direction does not count: what is allowed one way is allowed the other."""
        return Signatures(self.relations, self.entities, self.allowed | self.allowed.transpose(0, 2, 1))

    def links(self, relation: str) -> list[str]:
        """What a relation may link, for people: "Chemical → Disease"."""
        heads, tails = self.allowed[self.relations.index(relation)].nonzero()
        return [f"{self.entities[h]} → {self.entities[t]}" for h, t in zip(heads, tails, strict=True)]

    def outside(self, example: Example) -> Iterator[Outside]:
        """The relations of a document that link what they may not, of ids joined by "," each."""
        label = entity_labels(example)
        for head, relation, tail in stated(example.relations):
            ends = label.get(head, ""), label.get(tail, "")
            if relation in self.relations and not self._allows(relation, ends):
                yield Outside(head, relation, tail, ends)

    def _allows(self, relation: str, ends: tuple[str, str]) -> bool:
        if not {*ends} <= {*self.entities}:  # kinds of entities that nothing is asked of
            return False
        h, t = map(self.entities.index, ends)
        return bool(self.allowed[self.relations.index(relation), h, t])


def entity_labels(example: Example) -> dict[str, str]:
    """Concept → the label of most of its mentions (the first of two as frequent), in the order of the text."""
    return {
        name: Counter(span.label for span in spans).most_common(1)[0][0] for name, spans in mentions(example).items()
    }


def stated(relations: Iterable[Relation]) -> Iterator[tuple[str, str, str]]:
    """(head, label, tail) of every relation, of ids joined by "," each."""
    for relation in relations:
        for head, tail in product(relation.head.split(","), relation.tail.split(",")):
            yield head, relation.label, tail
