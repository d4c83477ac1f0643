"""What a concept graph knows of a text's words: every name of its concepts, found, and told token by token.

A tagger reads it beside the model's states: evidence, not a verdict, for names are ambiguous and never complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ahocorasick_rs import AhoCorasick

from domainkit.data.bio import Offsets, covered
from domainkit.graph import ConceptGraph

SHORTEST = 3  # characters of a name; shorter ones are mostly something else


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
    def of_graph(cls, graph: ConceptGraph, labels: Sequence[str]) -> Gazetteer:
        """The names of all concepts whose entity type is one of `labels`.

        "Hypertension, Portal" is found as "portal hypertension" too, for inverted names are how MeSH sorts.
        """
        of = {id_: [i for i, label in enumerate(labels) if label in graph.entities(id_)] for id_ in graph.concepts}
        written = ((name, id_) for alias, id_ in graph.aliases() if of[id_] for name in _written(alias))
        return cls(((name, label) for name, id_ in written for label in of[id_]), labels)

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
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

    def hints(self, text: str, offsets: Offsets) -> tuple[int, ...]:
        """A bit set for each token: bit 2 i where a name of label i begins, bit 2 i + 1 where it goes on."""
        bits = [0] * len(offsets)
        for start, end, label in self.find(text):
            for nth, token in enumerate(covered(start, end, text, offsets)):
                bits[token] |= 1 << (2 * label + (nth > 0))
        return tuple(bits)


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
