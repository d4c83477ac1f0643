"""What annotated documents taught: which mentions meant which concepts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from math import log
from typing import Any

from domainkit.link.abbreviation import mentions, surface
from domainkit.link.names import Names, nearest
from domainkit.ontology.names import spellings, words
from domainkit.types import Example

ALIKE = 6  # remembered mentions that are compared
RARE = log(0.01)  # an id of a rarer shape than this is newer than the documents, or of another ontology

Row = tuple[str, str, str, int]  # mention, label, concept ids, how often


class Memory:
    """The mentions of annotated documents and the long forms of their abbreviations, with what they meant."""

    def __init__(self, names: Names, rows: Iterable[Row]) -> None:
        self._names = names
        self.rows = tuple(rows)
        self._meant: dict[str, Counter[str]] = {}  # mention as written, or a key of its spelling → ids
        self._labels: dict[str, set[str]] = {}  # ids → the labels of their mentions
        shapes, forms = Counter[str](), dict[str, Counter[str]]()
        self.written: dict[str, list[str]] = {}  # ids → mentions
        for mention, label, ids, count in self.rows:
            parts = words(mention)
            for key in {mention, *(f"\n{key}" for key in spellings(parts) if key)}:  # no mention has a line break
                self._meant.setdefault(key, Counter())[ids] += count
            forms.setdefault(" ".join(parts), Counter())[ids] += count
            self._labels.setdefault(ids, set()).add(label)
            self.written.setdefault(ids, []).append(mention)
            shapes[shape(ids)] += count
        self._forms = sorted(form for form in forms if form)
        self._meant_by_form = [forms[form] for form in self._forms]
        self._shapes, self._total = shapes, sum(shapes.values())

    @classmethod
    def learn(cls, names: Names, examples: Iterable[Example]) -> Memory:
        """Remember the linked spans of documents, in which an abbreviation says something of its long form as well."""
        counts = Counter[tuple[str, str, str]]()
        for example in examples:
            found = mentions(example)
            for span in example.spans:
                if span.concept:
                    one = found[surface(example, span), span.label]
                    counts.update((text, span.label, span.concept) for text in (one.text, one.long) if text)
        return cls(names, ((*key, count) for key, count in sorted(counts.items())))

    def share(self, mention: str, parts: tuple[str, ...]) -> dict[str, float]:
        """How often the mention meant each of the ids, as a share, the less the seldomer it was seen."""
        found: dict[str, float] = {}
        for key in (mention, *(f"\n{key}" for key in spellings(parts))):
            meant = self._meant.get(key, Counter[str]())
            total = sum(meant.values()) + 0.5
            for ids, count in meant.items():
                found[ids] = max(found.get(ids, 0.0), count / total)
        return found

    def alike(self, form: str) -> Iterator[tuple[str, str, float]]:
        """Remembered mentions written like this one: (ids, as words, cosine × the share that meant these ids)."""
        if self._vectors is None:
            return
        row = self._names.vectors([form]) @ self._vectors
        for number, cosine in nearest(row.indices, row.data, ALIKE):
            meant = self._meant_by_form[number]
            total = sum(meant.values())
            yield from ((ids, self._forms[number], cosine * count / total) for ids, count in meant.items())

    def labelled(self, ids: str, label: str) -> bool:
        """Whether a mention with this label meant these ids."""
        return label in self._labels.get(ids, ())

    def usual(self, ids: str) -> float:
        """The logarithm of how usual ids of this shape (C000000, CHEBI:00000) are; 0 when nothing was learned."""
        return log((self._shapes[shape(ids)] + 1) / (self._total + 1)) if self._total else 0.0

    @cached_property
    def _vectors(self) -> Any:  # (n-grams, forms), sparse; None when there is nothing to compare
        return self._names.vectors(self._forms).T.tocsr() if self._forms and self._names.forms else None


def shape(ids: str) -> str:
    """How ids are made: D000000 for D003643; several of one mention are of one shape whatever they are."""
    return "," if "," in ids else re.sub(r"\d", "0", ids)
