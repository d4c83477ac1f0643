"""Scores with the interval that a bootstrap over documents gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 4_000_000  # numbers held at once while resampling, about 32 MB
Statistic = Callable[[np.ndarray], np.ndarray]  # (resamples, *counts) → (resamples,)


@dataclass(frozen=True)
class Score:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(
    counts: np.ndarray, statistic: Statistic, *, seed: int, samples: int = 1000, level: float = 0.95
) -> Score:
    """Percentile bootstrap over documents (Efron and Tibshirani 1993, chapter 13).

    counts: (documents, …), one document's part of the sums that the statistic is made of; whatever a document
    holds is drawn together, so texts of one document never pass for independent. Resamples on which the
    statistic is undefined (NaN) do not count. With one document the interval is that one value: it says nothing.
    Raises ValueError when there is no document.
    """
    if not len(counts):
        raise ValueError("a score needs at least one document")
    documents, flat = len(counts), counts.reshape(len(counts), -1).astype(np.float64)
    random = np.random.default_rng(seed)
    found = []
    size = max(1, BLOCK // max(flat.shape))
    for start in range(0, samples, size):
        drawn = random.multinomial(documents, np.full(documents, 1 / documents), min(size, samples - start))
        sums = drawn.astype(np.float64) @ flat  # (resamples, …)
        found.append(_quietly(statistic, sums.reshape(-1, *counts.shape[1:])))
    value = float(_quietly(statistic, flat.sum(0).reshape(1, *counts.shape[1:]))[0])
    if math.isnan(value):
        return Score(value, value, value)
    low, high = np.nanquantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Score(value, float(low), float(high))


def bits_per_byte(nll: Sequence[float], size: Sequence[float], *, seed: int) -> Score:
    """Bits a model needs per UTF-8 byte of text, lower is better.

    nll: negative log-likelihood of each document, nats. size: bytes of each document.
    """
    return bootstrap(_columns(nll, size), lambda sums: sums[:, 0] / sums[:, 1] / math.log(2), seed=seed)


def relative_change(adapted: Sequence[float], base: Sequence[float], size: Sequence[float], *, seed: int) -> Score:
    """Change of bits per byte from base to adapted, percent; negative is better.

    Paired: both are resampled together, so what makes a document hard for both does not widen the interval.
    adapted, base: negative log-likelihood of each document, nats. size: bytes of each document.
    """

    def change(sums: np.ndarray) -> np.ndarray:
        ours, theirs = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
        return 100 * (ours / theirs - 1)

    return bootstrap(_columns(adapted, base, size), change, seed=seed)


def classification(
    gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str], *, seed: int
) -> dict[str, Score]:
    """Accuracy and macro F1 of one label per text; `groups` names the document each text is from.

    Macro F1 is the mean over the labels that occur in gold (of the resample at hand); a label never predicted
    has F1 0.
    """
    counts = _counts(gold, predicted, groups)[1]
    return {
        "accuracy": bootstrap(counts, _accuracy, seed=seed),
        "macro_f1": bootstrap(counts, _macro_f1, seed=seed),
    }


def per_label(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, dict[str, float]]:
    """F1, precision, recall (0 where undefined) and support of every label in gold or predicted."""
    labels, counts = _counts(gold, predicted, [""] * len(gold))
    hits, found, support = counts[0]
    columns = {
        "f1": _ratio(2 * hits, found + support),
        "precision": _ratio(hits, found),
        "recall": _ratio(hits, support),
    }
    return {
        label: {name: float(values[i]) for name, values in columns.items()} | {"support": int(support[i])}
        for i, label in enumerate(labels)
    }


def _counts(gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Labels in order, and (documents, 3, labels): texts rightly given a label, given it, and having it."""
    if not len(gold) == len(predicted) == len(groups):
        raise ValueError(f"{len(gold)} gold, {len(predicted)} predicted labels and {len(groups)} groups")
    labels = sorted({*gold, *predicted})
    column = {label: i for i, label in enumerate(labels)}
    row = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    counts = np.zeros((len(row), 3, len(labels)), dtype=np.int64)
    for truth, guess, group in zip(gold, predicted, groups, strict=True):
        counts[row[group], 0, column[truth]] += truth == guess
        counts[row[group], 1, column[guess]] += 1
        counts[row[group], 2, column[truth]] += 1
    return labels, counts


def _accuracy(counts: np.ndarray) -> np.ndarray:
    """(resamples, 3, labels) → (resamples,)"""
    return counts[:, 0].sum(-1) / counts[:, 2].sum(-1)


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    """(resamples, 3, labels) → (resamples,)"""
    hits, found, support = counts[:, 0], counts[:, 1], counts[:, 2]  # each (resamples, labels)
    return np.where(support > 0, _ratio(2 * hits, found + support), 0).sum(-1) / (support > 0).sum(-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _columns(*values: Sequence[float]) -> np.ndarray:
    """(documents, columns). Raises ValueError unless the columns are of one length."""
    if len({len(column) for column in values}) != 1:
        raise ValueError(f"columns of unequal length: {[len(column) for column in values]}")
    return np.array(values, dtype=np.float64).T


def _quietly(statistic: Statistic, sums: np.ndarray) -> np.ndarray:
    """The statistic, its divisions by zero NaN or infinite without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return statistic(sums)
