"""What a document says of two of its concepts before anyone reads it: where both stand, how often, what a graph knows.

A relation is between concepts, each of which several mentions may name, so it is asked of pairs of concepts.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations, permutations
from math import log1p, log2
from zlib import crc32

import numpy as np

from domainkit.data.bio import covered, reach
from domainkit.data.overlaps import mentions
from domainkit.data.signatures import Signatures, entity_labels, stated
from domainkit.graph import MESH, ConceptGraph
from domainkit.types import Example, Span
from domainkit.types import Sequence as Tokens

KINDS = 1024  # numbers for what a concept is a kind of; two kinds may share one
FAR = 5  # sentences; further apart is as far
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\W_a-z])")  # where one ends and the next begins: title, then the text


@dataclass(frozen=True)
class Entity:
    """A concept as a window of a document names it."""

    name: str  # its id, or "start:end" of a mention without one
    label: int  # index of its entity label, that of most of its mentions
    tokens: tuple[tuple[int, int], ...]  # of each mention, half-open
    sentences: tuple[int, ...]  # of each mention, from 0


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs that are asked for, and what stands around them, as plain arrays."""

    names: tuple[str, ...]  # of the entities
    labels: np.ndarray  # (entities,) int64
    mentions: np.ndarray  # (mentions, 3) int64: entity, first token, token after the last
    sentences: np.ndarray  # (tokens,) int64, the sentence of each
    kinds: tuple[tuple[int, ...], ...]  # of each entity: numbers of itself and of what it is a kind of, below KINDS
    heads: np.ndarray  # (pairs,) int64, the entity
    tails: np.ndarray  # (pairs,) int64
    facts: np.ndarray  # (pairs, FACTS) float32
    gold: np.ndarray  # (pairs, relations) bool


@dataclass(frozen=True, eq=False)
class Window(Tokens):
    """A token sequence with the pairs of concepts that it names."""

    pairs: Pairs = field(kw_only=True)


def windows(
    example: Example, sequences: Iterable[Tokens], asked: Signatures, *, directed: bool, graph: ConceptGraph | None
) -> Iterator[Window]:
    """The windows of `example` (`data.tokens.overlapping`), each with the pairs that stand in it and may be related.

    directed: ask for each pair both ways; otherwise once, in the order of the text.
    """
    starts = [0, *(found.end() for found in _SENTENCE.finditer(example.text))]
    told = set(stated(example.relations))
    told |= set() if directed else {(tail, label, head) for head, label, tail in told}
    label = entity_labels(example)
    named = {name: (label[name], spans) for name, spans in mentions(example).items() if label[name] in asked.entities}
    for tokens in sequences:
        yield _window(tokens, example.text, starts, named, told, asked, directed, graph)


def _window(tokens: Tokens, text: str, starts: Sequence[int], named: Mapping[str, tuple[str, tuple[Span, ...]]],
            told: Collection[tuple[str, str, str]], asked: Signatures, directed: bool,
            graph: ConceptGraph | None) -> Window:  # fmt: skip
    sentences = np.array([bisect_right(starts, end - 1) - 1 if end > start else 0 for start, end in tokens.offsets])
    found = _entities(text, named, tokens, sentences, asked.entities)
    pairs = list(_asked(found, asked, directed))
    heads, tails = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    around = _Around(found, int(sentences.max(initial=0)) + 1, graph)
    facts = np.array([around.facts(h, t) for h, t in pairs], dtype=np.float32).reshape(len(pairs), FACTS)
    gold = np.array(
        [[(found[h].name, r, found[t].name) in told for r in asked.relations] for h, t in pairs], dtype=bool
    )
    spots = [(i, *spot) for i, e in enumerate(found) for spot in e.tokens]
    return Window(
        **{f.name: getattr(tokens, f.name) for f in fields(tokens)},
        pairs=Pairs(
            tuple(e.name for e in found),
            np.array([e.label for e in found], dtype=np.int64),
            np.array(spots, dtype=np.int64).reshape(-1, 3),
            sentences.astype(np.int64),
            tuple(around.kinds),
            heads, tails, facts, gold.reshape(len(pairs), len(asked.relations)),
        ),
    )  # fmt: skip


def _entities(text: str, named: Mapping[str, tuple[str, tuple[Span, ...]]], tokens: Tokens, sentences: np.ndarray,
              labels: Sequence[str]) -> list[Entity]:  # fmt: skip
    """The concepts of which the window holds a mention, in the order of the text.

    named: concept → its label, one of `labels`, and all its mentions.
    """
    found = list[Entity]()
    first, end = reach(tokens.offsets)
    for name, (label, spans) in named.items():
        near = [s for s in spans if s.start < end and s.end > first]
        held = [list(covered(s.start, s.end, text, tokens.offsets)) for s in near]
        spots = tuple(dict.fromkeys((own[0], own[-1] + 1) for own in held if own))
        if spots:
            where = tuple(int(sentences[start]) for start, _ in spots)
            found.append(Entity(name, labels.index(label), spots, where))
    return found


def _asked(found: Sequence[Entity], asked: Signatures, directed: bool) -> Iterator[tuple[int, int]]:
    allowed = np.any(asked.allowed, axis=0)  # (entity labels, entity labels)
    for h, t in permutations(range(len(found)), 2) if directed else combinations(range(len(found)), 2):
        if allowed[found[h].label, found[t].label]:
            yield h, t


class _Around:
    """What can be said of a window's entities, and of each pair of them, in numbers of about the same size."""

    def __init__(self, found: Sequence[Entity], sentences: int, graph: ConceptGraph | None) -> None:
        self._found, self._sentences = found, sentences
        known = [e.name.removeprefix(MESH) for e in found]
        above = [set(graph.kinds_of(one)) if graph else {one} for one in known]
        self.kinds = [tuple(sorted({crc32(kind.encode()) % KINDS for kind in kinds})) for kinds in above]
        self._above, self._known, self._graph = above, known, graph
        self._most = Counter[int]()  # of each label: mentions of the entity that has most
        for e in found:
            self._most[e.label] = max(self._most[e.label], len(e.tokens))
        self._own = [self._alone(i) for i in range(len(found))]
        self._nearest = {(i, label): self._near(e, label) for i, e in enumerate(found) for label in self._most}

    def _alone(self, i: int) -> tuple[float, ...]:
        """Of one entity: how often it is named, where, among how many others."""
        e, alike = self._found[i], [o for o in self._found if o.label == self._found[i].label]
        count, graph = len(e.tokens), self._graph
        others = [j for j in range(len(self._found)) if j != i]
        return (
            log1p(count), count / self._most[e.label], count == self._most[e.label],
            0 in e.sentences, min(e.sentences) / self._sentences, self._sentences - 1 in e.sentences,
            len(alike) == 1, log1p(len(alike)), any(0 in o.sentences for o in alike if o is not e),
            graph is not None and self._known[i] in graph.concepts,
            log1p(sum(self._known[i] in self._above[j] for j in others)),  # a kind of it is named as well
            log1p(sum(self._known[j] in self._above[i] for j in others)),
        )  # fmt: skip

    def _near(self, e: Entity, label: int) -> list[set[int]]:
        """For each mention of an entity: the entities of a label that are nearest to it in its sentence."""
        spots = [(s[0], n, j) for j, o in enumerate(self._found) if o.label == label and o is not e
                 for s, n in zip(o.tokens, o.sentences, strict=True)]  # fmt: skip
        nearest = []
        for (start, _), sentence in zip(e.tokens, e.sentences, strict=True):
            far = [(abs(other - start), j) for other, n, j in spots if n == sentence]
            least = min(far, default=(0, 0))[0]
            nearest.append({j for distance, j in far if distance == least})
        return nearest

    def facts(self, h: int, t: int) -> tuple[float, ...]:
        """FACTS numbers: those of the head, those of the tail, those of both."""
        head, tail = self._found[h], self._found[t]
        both = {*head.sentences} & {*tail.sentences}
        apart = min(abs(a - b) for a in head.sentences for b in tail.sentences)
        distance, first, last = min((abs(a[0] - b[0]), a, b) for a in head.tokens for b in tail.tokens)
        gap = max(0, max(first[0], last[0]) - min(first[1], last[1]))  # tokens between the two nearest mentions
        nearest = self._nearest[h, tail.label], self._nearest[t, head.label]
        return (
            *self._own[h], *self._own[t],
            bool(both), log1p(len(both)), len(both) / len({*head.sentences}), len(both) / len({*tail.sentences}),
            0 in both, self._sentences - 1 in both, apart == 1, min(apart, FAR) / FAR,
            log2(1 + distance) / 8, log2(1 + gap) / 8, gap <= 1, gap <= 3, first[0] < last[0],
            sum(t in found for found in nearest[0]) / len(nearest[0]),
            sum(h in found for found in nearest[1]) / len(nearest[1]),
            self._linked(h, t),
        )  # fmt: skip

    def _linked(self, h: int, t: int) -> bool:
        """Whether the graph links the two, or one of them and what the other is a kind of."""
        return any(
            bool(({link.head, link.tail} & self._above[other]) - {self._known[one]})
            for one, other in ((h, t), (t, h))
            if self._graph and self._known[one] in self._graph.concepts
            for link in self._graph.links_of(self._known[one])
        )


FACTS = 40  # of each pair: 12 of either end, 16 of both
TOGETHER = 24  # that of them which is 1 where one sentence names both
