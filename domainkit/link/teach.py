"""Learning to link: how much the signs weigh, told by documents with gold concepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

import numpy as np

from domainkit.link.abbreviation import mentions, surface
from domainkit.link.context import with_context
from domainkit.link.embedding import Embedded
from domainkit.link.evidence import Case, Evidence, Sign
from domainkit.link.memory import Memory
from domainkit.link.names import Names
from domainkit.link.weigh import Choice, fit, likelihood, threshold
from domainkit.types import Example

FOLDS = 5  # what the documents of one teach is weighed on the others

Document = tuple[list[Case], list[Counter[str]]]  # its mentions, and what each means: ids, "" for none → how often


def learn(
    names: Names, documents: Sequence[Example], embedded: Embedded | None, *, remember: bool = True
) -> tuple[dict[str, float], float]:
    """The weight of each sign, by its name, and the probability below which a mention is better not linked.

    A document's signs are gathered with the memory of the other folds: with its own every mention would be known.
    remember: False gathers them with no memory at all, for a linker that is to serve without one.
    """
    parts = [[one for one in documents if fold(one) == number] for number in range(FOLDS)]
    found = list[Document]()
    for part in parts:
        others = (one for other in parts if other is not part for one in other)
        memory = Memory.learn(names, others if remember else ())
        found += _gathered(part, Evidence(names, memory, embedded))
    weights = _fitted(found)
    found = [(with_context(cases, names.graph.above, weights), meant) for cases, meant in found]
    weights = _fitted(found)
    return {sign.name: round(float(weights[sign]), 4) for sign in Sign}, _limit(found, weights)


def right(ids: str, gold: str) -> bool:
    """Whether a link is right: each of its ids is among those of the gold mention."""
    return bool(ids) and set(ids.split(",")) <= set(gold.split(","))


def fold(example: Example) -> int:
    """The fold of a document, by nothing but its group or id."""
    return int.from_bytes(sha256((example.group or example.id or example.text).encode()).digest()[:4]) % FOLDS


def _gathered(documents: Iterable[Example], evidence: Evidence) -> Iterator[Document]:
    for example in documents:
        if example.spans:
            found = mentions(example)
            meant = {key: Counter[str]() for key in found}
            for span in example.spans:
                meant[surface(example, span), span.label][span.concept or ""] += 1
            yield evidence.cases(list(found.values())), list(meant.values())


def _fitted(found: Sequence[Document]) -> np.ndarray:
    """The weights under which most mentions come out right; one that a document repeats counts as its square root."""
    pairs = [(case, meant) for cases, all_ in found for case, meant in zip(cases, all_, strict=True)]
    return fit(
        [
            Choice(case.evidence, _rightly(case, gold), count**0.5)
            for case, meant in pairs
            for gold, count in meant.items()
        ]
    )


def _rightly(case: Case, gold: str) -> np.ndarray:
    """Which candidates are right; that none fits is right where no other is."""
    good = [right(ids, gold) for ids in case.ids]
    return np.array([*good, not any(good)])


def _limit(found: Sequence[Document], weights: np.ndarray) -> float:
    best, good, linkable = list[float](), list[bool](), list[bool]()
    for cases, all_ in found:
        for case, meant in zip(cases, all_, strict=True):
            probabilities = likelihood(case.evidence, weights)[:-1]
            first = int(probabilities.argmax()) if case.ids else -1
            for gold, count in meant.items():
                best += [float(probabilities[first]) if case.ids else 0.0] * count
                good += [bool(case.ids) and right(case.ids[first], gold)] * count
                linkable += [bool(gold)] * count
    return threshold(np.array(best), np.array(good), np.array(linkable))
