"""What speaks for each concept that a mention may mean, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from domainkit.link.abbreviation import Mention
from domainkit.link.embedding import Embedded
from domainkit.link.memory import RARE, Memory
from domainkit.link.names import Names, Near
from domainkit.ontology.names import words

NAMES = 40  # of one concept that are embedded
KNOWN = 0.3  # share of the times that a mention meant a concept, above which it is no riddle


class Sign(IntEnum):
    """The features of a candidate, from 0 to 1 where nothing else is said."""

    SPELLED = 0  # the mention is one of its names, in any spelling
    EXACT = 1  # … as `normal` compares them
    PREFERRED = 2  # … and it is the preferred one
    LEARNED = 3  # share of the times that the mention meant it in training
    NEAR = 4  # cosine of its most similar name over character trigrams
    NEAREST = 5  # no concept of the mention's label has a nearer name
    ALIKE = 6  # cosine of the most similar mention that meant it in training, × the share of the times that it did
    COVERED = 7  # share of the mention's words, by their rarity, that the name has
    COVERING = 8  # share of the name's words that the mention has
    EMBEDDED = 9  # cosine of its most similar name in the backbone's embedding
    TYPED = 10  # a corpus would label it as the mention is
    USUAL = 11  # logarithm of how usual ids of its shape are
    ABOVE_NEW = 12  # NEAR of a concept that is a kind of it and newer than the training documents, 1 + NEAR if SPELLED
    SAME = 13  # probability that another mention of the document means it
    ABOVE = 14  # … means a kind of it
    BELOW = 15  # … means what it is a kind of
    NONE = 16  # the candidate that stands for none


Rows = dict[str, list[float]]  # concept ids → features, in the order of `Sign`


@dataclass(frozen=True)
class Case:
    """A mention with its candidates."""

    mention: Mention
    ids: tuple[str, ...]
    hows: tuple[str, ...]  # how each was found
    evidence: np.ndarray  # (candidates + 1, features), the last row for none


class Evidence:
    """Gathers what a graph, remembered mentions and an embedding say."""

    def __init__(self, names: Names, memory: Memory, embedded: Embedded | None) -> None:
        self._names, self._memory, self._embedded = names, memory, embedded

    def cases(self, mentions: Sequence[Mention]) -> list[Case]:
        """The candidates of each mention of a document, without what its other mentions say."""
        parts = {text: words(text) for m in mentions for text in (m.text, m.long, m.other)}
        asked = [(" ".join(parts[t]), m.label) for m in mentions for t in (m.long or m.text, m.other) if t]
        near = self._names.near(asked)
        found = list[tuple[Mention, Rows]]()
        for mention in mentions:
            main = mention.long or mention.text
            rows = self._rows(main, mention, parts[main], near)
            if mention.other and not any(_known(row) for row in rows.values()):
                others = self._rows(mention.other, mention, parts[mention.other], near)
                rows = {ids: _most(rows.get(ids), others.get(ids)) for ids in (*rows, *others)}
            self._step_up(rows)
            found.append((mention, rows))
        if self._embedded:
            self._add_embedded(found, self._embedded)
        return [self._case(mention, rows) for mention, rows in found]

    def _rows(self, text: str, mention: Mention, parts: tuple[str, ...], near: Mapping[tuple[str, str], Near]) -> Rows:
        """What speaks for each concept that `text` may mean, which is the mention or what it stands for."""
        rows, form = Rows(), " ".join(parts)
        for ids in self._names.graph.find(text):
            _set(rows, ids, Sign.EXACT, 1.0)
            _set(rows, ids, Sign.SPELLED, 1.0)
        for ids in self._names.find(parts):
            _set(rows, ids, Sign.SPELLED, 1.0)
        for ids, share in self._memory.share(text, parts).items():
            _set(rows, ids, Sign.LEARNED, share)
        best = 0.0
        for number, cosine in near.get((form, mention.label), ()):
            for ids in self._names.owners[number]:
                self._compare(rows, ids, Sign.NEAR, cosine, parts, self._names.forms[number])
                best = max(best, cosine if self._names.agrees(ids, mention.label) else 0.0)
        for ids, other, value in self._memory.alike(form):
            self._compare(rows, ids, Sign.ALIKE, value, parts, other)
        for ids, row in rows.items():
            row[Sign.NEAREST] = float(row[Sign.NEAR] >= best > 0)
            row[Sign.PREFERRED] = float(self._names.preferred.get(ids) == form)
            row[Sign.TYPED] = float(self._typed(ids, mention.label))
        return rows

    def _compare(self, rows: Rows, ids: str, sign: Sign, value: float, parts: tuple[str, ...], form: str) -> None:
        """Note that `form` speaks for `ids`, and how far its words are those of the mention."""
        row = rows.setdefault(ids, [0.0] * len(Sign))
        if value <= row[sign]:
            return
        row[sign], other = value, form.split()
        share, mine, its = (sum(map(self._names.rarity, set(some))) for some in (set(parts) & set(other), parts, other))
        covered, covering = share / mine if mine else 0.0, share / its if its else 0.0
        if covered + covering > row[Sign.COVERED] + row[Sign.COVERING]:
            row[Sign.COVERED], row[Sign.COVERING] = covered, covering

    def _typed(self, ids: str, label: str) -> bool:
        known = self._names.graph.concepts
        return all(
            self._names.agrees(i, label) if i in known else self._memory.labelled(ids, label) for i in ids.split(",")
        )

    def _step_up(self, rows: Rows) -> None:
        """Add what the candidates are kinds of, where those are newer than the training documents."""
        for ids, row in list(rows.items()):
            if self._memory.usual(ids) < RARE:
                for above in self._names.graph.above.get(ids, ()):
                    _set(rows, above, Sign.ABOVE_NEW, row[Sign.SPELLED] + row[Sign.NEAR])
        for ids, row in rows.items():
            row[Sign.USUAL] = self._memory.usual(ids)

    def _add_embedded(self, found: Sequence[tuple[Mention, Rows]], embedded: Embedded) -> None:
        named = {ids: self._written(ids) for _, rows in found for ids in rows}
        asked = [tuple(filter(None, (one.long or one.text, one.other))) for one, _ in found]
        embedded.prepare(text for texts in (*asked, *named.values()) for text in texts)
        for texts, (_, rows) in zip(asked, found, strict=True):
            for ids, row in rows.items():
                row[Sign.EMBEDDED] = max(embedded.nearest(text, named[ids]) for text in texts)

    def _written(self, ids: str) -> tuple[str, ...]:
        """The names of concepts, and the mentions that meant them."""
        concepts = [self._names.graph.concepts[i] for i in ids.split(",") if i in self._names.graph.concepts]
        names = (name for one in concepts for name in (one.name, *one.synonyms))
        return tuple(dict.fromkeys((*self._memory.written.get(ids, ()), *names)))[:NAMES]

    def _case(self, mention: Mention, rows: Rows) -> Case:
        none = [0.0] * len(Sign)
        none[Sign.NONE] = 1.0
        hows = tuple(_how(row, bool(mention.long)) for row in rows.values())
        return Case(mention, tuple(rows), hows, np.array([*rows.values(), none], np.float32))


def _set(rows: Rows, ids: str, sign: Sign, value: float) -> None:
    """Note a feature, unless more is noted already."""
    row = rows.setdefault(ids, [0.0] * len(Sign))
    row[sign] = max(row[sign], value)


def _known(row: Sequence[float]) -> bool:
    """Whether graph or memory know this mention for what its label says."""
    return bool(row[Sign.TYPED]) and row[Sign.SPELLED] + row[Sign.LEARNED] > KNOWN


def _most(one: list[float] | None, other: list[float] | None) -> list[float]:
    return [max(pair) for pair in zip(one or other or (), other or one or (), strict=True)]


def _how(row: Sequence[float], abbreviated: bool) -> str:
    if row[Sign.SPELLED] and abbreviated:
        return "abbreviation"
    if row[Sign.SPELLED]:
        return "exact" if row[Sign.EXACT] else "normalised"
    return "learned" if row[Sign.LEARNED] else "similar"
