"""Scores of what was extracted from documents: spans, their concepts, the relations between these, summaries.

Gold and predicted examples stand in the same order, over the same texts. Every interval is a bootstrap over documents
(`domainkit.score.bootstrap`): examples of one group, or of one id without a group, are drawn together. A score that is
undefined (precision where nothing is predicted) is 0, as in seqeval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence, Set
from itertools import product

import numpy as np

from domainkit.align import align, same, same_bounds
from domainkit.score import Score, Statistic, bootstrap
from domainkit.types import Example, Relation

Scores = dict[str, Score]
PerLabel = dict[str, dict[str, float]]
Fact = tuple[str, Hashable]  # label, and what the document says under it
ROUGE = ("rouge1", "rouge2", "rougeL")


def span_scores(gold: Sequence[Example], predicted: Sequence[Example], *, seed: int) -> tuple[Scores, PerLabel]:
    """Micro precision, recall and F1 of spans, and two F1 that forgive; then the strict scores of each label.

    `precision`, `recall`, `f1`: strict, the same start, end and label (seqeval in strict mode, nervaluate "strict").
    `exact_f1`: the same start and end, whatever the label. `partial_f1`: bounds that merely overlap count half,
    whatever the label. Both are nervaluate's schemata "exact" and "partial" (SemEval-2013 task 9.1), so that f1 beside
    exact_f1 tells what wrong labels cost, and exact_f1 beside partial_f1 what wrong bounds cost. See `align`.
    """
    rows = _rows(gold, predicted)
    values = [_span_hits(g, p) for g, p in zip(gold, predicted, strict=True)]
    counts = _by_document(rows, values)  # (documents, 5)
    scores = _micro(counts[:, [0, 3, 4]], seed)
    scores |= {name: _score(counts[:, [i, 3, 4]], _f1, seed) for i, name in ((1, "exact_f1"), (2, "partial_f1"))}
    return scores, _per_label(_spans, gold, predicted)


def link_accuracy(gold: Sequence[Example], predicted: Sequence[Example], *, seed: int) -> tuple[Scores, PerLabel]:
    """Share of gold's linked mentions that the prediction links rightly: how good linking is when the spans are given.

    A mention is right when the span predicted with its start, end and label has ids, all of them among gold's (a
    composite mention has several). A mention that is not predicted, or without an id, is wrong: with predicted spans
    this is a recall. Gold mentions without an id are left out; by label, `linked` and `unlinked` count both.
    """
    rows, values = _rows(gold, predicted), []
    by_label: dict[str, Counter[str]] = {}
    for g, p in zip(gold, predicted, strict=True):
        total = Counter[str]()
        for one, other in align(g.spans, p.spans):
            if one:
                right = bool(other and same(one, other) and other.concepts and {*other.concepts} <= {*one.concepts})
                said = Counter(linked=1, right=int(right)) if one.concepts else Counter(unlinked=1)
                by_label.setdefault(one.label, Counter()).update(said)
                total.update(said)
        values.append((total["right"], total["linked"]))
    accuracy = _score(_by_document(rows, values), lambda sums: sums[:, 0] / sums[:, 1], seed)
    return {"link_accuracy": accuracy}, {
        label: {
            "link_accuracy": _part(of["right"], of["linked"]),
            "linked": of["linked"],
            "unlinked": of["unlinked"],
        }
        for label, of in sorted(by_label.items())
    }


def link_scores(gold: Sequence[Example], predicted: Sequence[Example], *, seed: int) -> tuple[Scores, PerLabel]:
    """Linking on predicted mentions, end to end: micro precision, recall and F1, on mentions and on documents.

    `link_…`: of all (document, start, end, id), so the span must be found as well. `concept_…`: of all (document, id),
    the measure of BioCreative V CDR for named entity recognition and normalisation (Wei et al. 2016,
    doi:10.1093/database/baw032): how often or where a concept is named does not matter. A composite mention counts for
    each of its ids; spans without an id say nothing, on either side. By label: `concept_…` of the ids its spans have.
    """
    scores: Scores = {}
    for prefix, view in (("link_", _links), ("concept_", _concepts)):
        scores |= {prefix + name: score for name, score in _set_scores(view, gold, predicted, seed).items()}
    by_label = _per_label(_labelled_concepts, gold, predicted)
    return scores, {
        label: {name if name == "support" else f"concept_{name}": value for name, value in of.items()}
        for label, of in by_label.items()
    }


def relation_scores(
    gold: Sequence[Example], predicted: Sequence[Example], *, seed: int, undirected: Collection[str] = ()
) -> tuple[Scores, PerLabel]:
    """Micro precision, recall and F1 of the document's set of (head, label, tail), and the scores of each label.

    The measure of BioCreative V CDR for chemical-induced diseases. The direction counts, except for labels in
    `undirected`. Ids joined by "," stand for one relation of each, as `domainkit.data.overlaps.mentions` has it.
    A relation's score is not looked at: what is below the threshold must not be in `predicted`.
    """

    def stated(example: Example) -> set[Fact]:
        return {fact for relation in example.relations for fact in _facts(relation, undirected)}

    return _set_scores(stated, gold, predicted, seed), _per_label(stated, gold, predicted)


def summary_scores(gold: Sequence[Example], predicted: Sequence[Example], *, seed: int) -> Scores:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 (Lin 2004), the mean over the examples that have a gold summary.

    As published results have it: words stemmed by Porter's rules, `rouge-score`'s own tokens. These are letters a-z
    and digits, so text in another script scores 0. Raises ValueError when no example has a gold summary.
    """
    from rouge_score.rouge_scorer import RougeScorer

    rows = _rows(gold, predicted)
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    values, kept = [], []
    for row, g, p in zip(rows, gold, predicted, strict=True):
        if g.summary:
            found = scorer.score(g.summary, p.summary)
            values.append((*(found[name].fmeasure for name in ROUGE), 1))
            kept.append(row)
    if not kept:
        raise ValueError("no example has a gold summary")
    counts = _by_document(_numbered(kept), values)  # (documents, 4)
    return {name: _score(counts[:, [i, 3]], lambda sums: sums[:, 0] / sums[:, 1], seed) for i, name in enumerate(ROUGE)}


def _span_hits(gold: Example, predicted: Example) -> tuple[float, ...]:
    """Strict, exact and partial hits of one example, then how many spans are predicted and how many are gold."""
    aligned = align(gold.spans, predicted.spans)
    pairs = [(g, p) for g, p in aligned if g and p]
    exact = sum(same_bounds(g, p) for g, p in pairs)
    return (
        sum(same(g, p) for g, p in pairs),
        exact,
        (exact + len(pairs)) / 2,
        sum(p is not None for _, p in aligned),
        sum(g is not None for g, _ in aligned),
    )


def _facts(relation: Relation, undirected: Collection[str]) -> set[Fact]:
    """What a relation states of single ids."""
    pairs = product(relation.head.split(","), relation.tail.split(","))
    return {(relation.label, tuple(sorted(p)) if relation.label in undirected else p) for p in pairs}


def _spans(example: Example) -> set[Fact]:
    return {(span.label, (span.start, span.end)) for span in example.spans}


def _links(example: Example) -> set[Hashable]:
    return {(span.start, span.end, concept) for span in example.spans for concept in span.concepts}


def _concepts(example: Example) -> set[Hashable]:
    return {concept for span in example.spans for concept in span.concepts}


def _labelled_concepts(example: Example) -> set[Fact]:
    return {(span.label, concept) for span in example.spans for concept in span.concepts}


def _set_scores(
    view: Callable[[Example], Set[Hashable]], gold: Sequence[Example], predicted: Sequence[Example], seed: int
) -> Scores:
    """Micro precision, recall and F1 of what `view` says of each example."""
    rows = _rows(gold, predicted)
    values = [(len(g & p), len(p), len(g)) for g, p in zip(map(view, gold), map(view, predicted), strict=True)]
    return _micro(_by_document(rows, values), seed)


def _micro(counts: np.ndarray, seed: int) -> Scores:
    """counts: (documents, 3), hits, predicted and gold."""
    return {
        "precision": _score(counts, lambda sums: sums[:, 0] / sums[:, 1], seed),
        "recall": _score(counts, lambda sums: sums[:, 0] / sums[:, 2], seed),
        "f1": _score(counts, _f1, seed),
    }


def _f1(sums: np.ndarray) -> np.ndarray:
    """(resamples, 3) → (resamples,)"""
    return 2 * sums[:, 0] / (sums[:, 1] + sums[:, 2])


def _score(counts: np.ndarray, statistic: Statistic, seed: int) -> Score:
    """`bootstrap`, and 0 where the figure is undefined: a report has no word for that."""
    score = bootstrap(counts, statistic, seed=seed)
    return Score(0.0, 0.0, 0.0) if np.isnan(score.value) else score


def _per_label(view: Callable[[Example], Set[Fact]], gold: Sequence[Example], predicted: Sequence[Example]) -> PerLabel:
    """F1, precision, recall (0 where undefined) and support of every label in gold or predicted."""
    hits, found, support = Counter[str](), Counter[str](), Counter[str]()
    for g, p in zip(map(view, gold), map(view, predicted), strict=True):
        for counter, facts in ((hits, g & p), (found, p), (support, g)):
            counter.update(label for label, _ in facts)
    return {
        label: {
            "f1": _part(2 * hits[label], found[label] + support[label]),
            "precision": _part(hits[label], found[label]),
            "recall": _part(hits[label], support[label]),
            "support": support[label],
        }
        for label in sorted({*found, *support})
    }


def _part(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _rows(gold: Sequence[Example], predicted: Sequence[Example]) -> list[int]:
    """The document of each example, from 0. Raises ValueError when predicted is not about the same texts as gold."""
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold and {len(predicted)} predicted examples")
    for i, (g, p) in enumerate(zip(gold, predicted, strict=True)):
        if g.text != p.text:
            raise ValueError(f"example {i} ({g.id!r}) has another text in gold than predicted")
    return _numbered([g.group or g.id or i for i, g in enumerate(gold)])


def _numbered(names: Sequence[Hashable]) -> list[int]:
    """Names → numbers from 0, the same for the same name."""
    row = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [row[name] for name in names]


def _by_document(rows: Sequence[int], values: Sequence[Sequence[float]]) -> np.ndarray:
    """Each example's counts summed by document: (documents, columns)."""
    if not rows:
        raise ValueError("a score needs at least one document")
    counts = np.zeros((max(rows) + 1, len(values[0])))
    np.add.at(counts, list(rows), np.array(values, dtype=np.float64))
    return counts
