"""What a concept graph knows of a text's words: every name of its concepts, found, and told token by token.

A tagger reads it beside the model's states: evidence, not a verdict, for names are ambiguous and never complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import lru_cache

from ahocorasick_rs import AhoCorasick

from domainkit.data.bio import Offsets, covered, reach
from domainkit.graph import ConceptGraph
from domainkit.link.abbreviation import abbreviations

SLOTS = 31  # labels that a token's hints tell apart: as many as 62 bits hold
SHORTEST = 3  # characters of a name; shorter ones are mostly something else

Mark = tuple[int, int, int]  # start and end, characters, half-open; a label's index


class Gazetteer:
    """Names that are told in a text, each with the label (the index of one) that it speaks for.

    A name is found in any case, as whole words, and with a plural s.
    """

    def __init__(self, names: Iterable[tuple[str, int]], labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        owners: dict[str, set[int]] = {}
        for name, label in names:
            if len(name) >= SHORTEST:
                owners.setdefault(_lower(name), set()).add(label)
        self._owners = [tuple(sorted(found)) for found in owners.values()]
        self._search = AhoCorasick(list(owners)) if owners else None

    @classmethod
    @lru_cache(maxsize=4)
    def of_types(cls, graph: ConceptGraph, entities: tuple[str, ...]) -> Gazetteer:
        """The names of all concepts whose entity type is one of `entities`, labelled by their semantic types.

        "Hypertension, Portal" is found as "portal hypertension" too, for inverted names are how MeSH sorts.
        """
        chosen = {id_ for id_ in graph.concepts if not set(entities).isdisjoint(graph.entities(id_))}
        types = sorted({tui for id_ in chosen for tui in graph.types(id_)})
        index = {tui: i for i, tui in enumerate(types)}
        written = ((name, id_) for alias, id_ in graph.aliases() if id_ in chosen for name in _written(alias))
        return cls(((name, index[tui]) for name, id_ in written for tui in graph.types(id_)), types)

    @classmethod
    def of_graph(cls, graph: ConceptGraph, entities: tuple[str, ...]) -> Gazetteer:
        """The same names, labelled by `entities`."""
        found = copy(cls.of_types(graph, entities))
        said = [[i for i, entity in enumerate(entities) if entity in graph.table.entities_of(t)] for t in found.labels]
        found.labels = entities
        found._owners = [tuple(sorted({label for own in owners for label in said[own]})) for owners in found._owners]
        return found

    def find(self, text: str) -> Iterator[Mark]:
        """(start, end, label's index) of every name, leftmost and longest of its label; characters, half-open."""
        lower = _lower(text)
        found = self._search.find_matches_as_indexes(lower, overlapping=True) if self._search else []
        free = [0] * len(self.labels)
        for number, start, end in sorted(found, key=lambda m: (m[1], -m[2], m[0])):
            if _is_word(lower, start, end):
                for label in self._owners[number]:
                    if start >= free[label]:
                        free[label] = end
                        yield start, end, label

    def marks(self, text: str) -> list[Mark]:
        """What `find` finds, and every place of an abbreviation that the text defines, with the labels of the name that
        its long form ends with."""
        return [*self.find(text), *self._abbreviated(text)]

    @staticmethod
    def hints(marks: Iterable[Mark], text: str, offsets: Offsets) -> tuple[int, ...]:
        """A bit set for each token: bit 2 i where a name of label i begins, bit 2 i + 1 where it goes on.

        Labels beyond SLOTS share a bit with an earlier one.
        """
        bits = [0] * len(offsets)
        first, last = reach(offsets)
        for start, end, label in (mark for mark in marks if mark[0] < last and mark[1] > first):
            for nth, token in enumerate(covered(start, end, text, offsets)):
                bits[token] |= 1 << (2 * (label % SLOTS) + (nth > 0))
        return tuple(bits)

    def _abbreviated(self, text: str) -> Iterator[Mark]:
        for short, long in abbreviations(text).items():
            labels = {label for _, end, label in self.find(long) if end + 1 >= len(long)}
            for match in re.finditer(rf"(?<!\w){re.escape(short)}(?!\w)", text) if labels else ():
                yield from ((match.start(), match.end(), label) for label in labels)


def _lower(text: str) -> str:
    """Lower case, character by character: İ is the only letter whose small form is two."""
    return text.replace("İ", "ı").lower()


def _written(alias: str) -> list[str]:
    """How a name may stand in a text."""
    last, comma, first = alias.partition(", ")
    return [alias, f"{first} {last}"] if comma and ", " not in first else [alias]


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether no letter or digit goes on before or after; a plural s may."""
    if start and text[start - 1].isalnum() and text[start].isalnum():
        return False
    rest = text[end : end + 2]
    plural = rest[:1] == "s" and not rest[1:].isalnum()
    return plural or not (rest[:1].isalnum() and text[end - 1].isalnum())
