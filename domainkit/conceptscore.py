"""What summaries tell of the concepts of a graph: how many of gold's they name, and how many they invent."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from domainkit.constrain import Naming
from domainkit.passages import Mark, Passage
from domainkit.score import Score, bootstrap
from domainkit.types import Example, Span

SHOWN = 20  # documents
Row = tuple[Hashable, Sequence[float]]  # a document, its part of the sums


def concept_scores(
    gold: Sequence[Example], told: Sequence[Example], naming: Naming, *, seed: int
) -> dict[str, Score]:  # fmt: skip
    """Three shares, each 0 where nothing is named at all.

    `concept_recall`: of the names in gold's summaries, those of which the summary that is told names a concept, too.
    `invented_rate`: of the names in the summaries told, those whose concepts the text does not support (see
    `Naming.supported`). `invented_documents`: of the documents, those whose summary has such a name.
    gold, told: the same documents in the same order; `text` is what is summarised.
    """
    rows = []
    for i, (g, t) in enumerate(zip(gold, told, strict=True)):
        names, said = naming.find(t.summary), naming.find(g.summary)
        ids = {id_ for span in names for id_ in span.concepts}
        kept = sum(not ids.isdisjoint(span.concepts) for span in said)
        invented = len(naming.invented(t.summary, naming.supported(t.text)))
        rows.append((g.group or g.id or i, (kept, len(said), invented, len(names), invented > 0, 1)))
    counts = by_document(rows)
    parts = {"concept_recall": (0, 1), "invented_rate": (2, 3), "invented_documents": (4, 5)}
    return {name: _share(counts[:, columns], seed) for name, columns in parts.items()}


def by_document(rows: Iterable[Row]) -> np.ndarray:
    """The sums of each document: (documents, columns)."""
    sums: dict[Hashable, np.ndarray] = {}
    for document, values in rows:
        sums[document] = sums.get(document, 0) + np.array(values, dtype=np.float64)
    return np.array(list(sums.values()))


def summary_passages(
    gold: Sequence[Example], told: Mapping[str, Sequence[Example]], naming: Naming | None
) -> tuple[Passage, ...]:
    """The gold summary of each document over those that are told, by who tells them; those that invent most first.

    Marked are, in what is told, names that are invented, and right ones: of concepts that gold names.
    """
    found = [_passage(i, gold[i], {who: made[i] for who, made in told.items()}, naming) for i in range(len(gold))]
    return tuple(sorted(found, key=lambda one: -len(one.errors))[:SHOWN])


def _passage(number: int, gold: Example, told: Mapping[str, Example], naming: Naming | None) -> Passage:
    text, marks = f"gold: {gold.summary}", list[Mark]()
    wanted = {id_ for span in naming.find(gold.summary) for id_ in span.concepts} if naming else set()
    for who, example in told.items():
        text += f"\n{who}: "
        for span, state in _states(example, naming, wanted):
            start, end = (len(text) + place for place in (span.start, span.end))
            marks.append(Mark(start, end, span.label, state, span.concept or ""))
        text += example.summary
    return Passage(gold.id or gold.group or f"document {number + 1}", text, tuple(marks))


def _states(example: Example, naming: Naming | None, wanted: set[str]) -> Iterable[tuple[Span, str]]:
    """The names in a summary that are worth a mark, each with its state."""
    if naming:
        invented = naming.invented(example.summary, naming.supported(example.text))
        for span in naming.find(example.summary):
            if span in invented or not wanted.isdisjoint(span.concepts):
                yield span, "spurious" if span in invented else "right"


def _share(counts: np.ndarray, seed: int) -> Score:
    """counts: (documents, 2), a part and its whole."""
    score = bootstrap(counts, lambda sums: sums[:, 0] / sums[:, 1], seed=seed)
    return Score(0.0, 0.0, 0.0) if np.isnan(score.value) else score
