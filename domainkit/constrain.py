"""What a text may tell of another: concepts that the other one names, by whatever name, and what they are kinds of.

The names are the graph's, as the gazetteer's trie of them finds them: in any case, as whole words, the leftmost and
longest. A name that the graph has in capitals only ("ALL", a leukaemia) must stand in capitals in the text as well, or
ordinary words would be concepts. What counts as invented and what is kept from being written is so by one definition.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from domainkit.gazetteer import Gazetteer
from domainkit.graph import ConceptGraph
from domainkit.ontology.names import normal
from domainkit.types import Span


class Naming:
    """The names of the concepts of some entity types."""

    def __init__(self, graph: ConceptGraph, labels: tuple[str, ...]) -> None:
        self.graph, self.labels = graph, labels
        self._names = Gazetteer.of_graph(graph, labels)
        self._owners: dict[tuple[str, str], str] = {}
        letters = {alias for alias, _ in graph.aliases() if alias.isalpha()}
        capitals = {alias for alias in letters if alias.isupper()}
        self._capitals = {alias.lower() for alias in capitals} - {alias.lower() for alias in letters - capitals}

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, graph: ConceptGraph, labels: tuple[str, ...]) -> Naming:
        """The naming of a graph, prepared once."""
        return cls(graph, labels)

    def find(self, text: str) -> tuple[Span, ...]:
        """Every name in a text, with all concepts of its label that have it."""
        found = ((start, end, text[start:end], self.labels[i]) for start, end, i in self._names.find(text))
        return tuple(
            Span(start, end, label, self._concepts(name, label))
            for start, end, name, label in found
            if name.isupper() or name.lower() not in self._capitals
        )

    def supported(self, text: str) -> frozenset[str]:
        """The concepts that a text names, and all that these are kinds of."""
        named = {id_ for span in self.find(text) for id_ in span.concepts}
        return frozenset(named.union(*map(self.graph.ancestors, named)))

    def invented(self, text: str, supported: Collection[str]) -> list[Span]:
        """The names in a text none of whose concepts is among `supported`, in the order of the text."""
        return [span for span in self.find(text) if not any(id_ in supported for id_ in span.concepts)]

    def _concepts(self, name: str, label: str) -> str:
        """The ids, joined by ",". The words are turned as well, as MeSH has "Hypertension, Portal"."""
        key = (name.lower(), label)
        if key not in self._owners:
            words = normal(name).split()
            turned = (self.graph.find(" ".join(words[i:] + words[:i])) for i in range(len(words)))
            owners = dict.fromkeys(id_ for ids in turned for id_ in ids if label in self.graph.entities(id_))
            self._owners[key] = ",".join(owners)
        return self._owners[key]
