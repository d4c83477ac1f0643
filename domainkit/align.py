"""Which predicted span answers which gold span: what scores count and reports show is decided here, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from domainkit.types import Span

LEAST_OVERLAP = 1  # percent of the gold span that a prediction must share to answer it


def align(gold: Iterable[Span], predicted: Iterable[Span]) -> list[tuple[Span | None, Span | None]]:
    """Pairs (gold, predicted) of one document, each span in one pair; None stands for no partner.

    Spans of the same start, end and label are paired first, then those of the same start and end, then those that
    overlap, in the order of the text. So each gold span is answered once, as nervaluate has it
    (https://github.com/MantisAI/nervaluate, after SemEval-2013 task 9.1); unlike there, a nested span never takes
    the partner of one that fits better. Pieces of discontinuous spans are not looked at, and a stretch predicted twice
    with one label counts once.
    """
    left, open_ = _ordered(gold), _ordered(predicted)
    pairs: list[tuple[Span | None, Span | None]] = []
    for alike in (same, same_bounds, _overlapping):
        open_ = _pair(left, open_, alike, pairs)
    return [*pairs, *((span, None) for span in left), *((None, span) for span in open_)]


def same(gold: Span, predicted: Span) -> bool:
    """Strictly right: the same start, end and label."""
    return same_bounds(gold, predicted) and gold.label == predicted.label


def same_bounds(gold: Span, predicted: Span) -> bool:
    """The same start and end, whatever the label."""
    return (gold.start, gold.end) == (predicted.start, predicted.end)


def _overlapping(gold: Span, predicted: Span) -> bool:
    shared = min(gold.end, predicted.end) - max(gold.start, predicted.start)  # characters
    return 100 * shared >= LEAST_OVERLAP * (gold.end - gold.start)


def _ordered(spans: Iterable[Span]) -> list[Span]:
    """Spans in the order of the text, each start, end and label once."""
    distinct = {(span.start, span.end, span.label): span for span in spans}
    return [distinct[key] for key in sorted(distinct)]


def _pair(
    left: list[Span],
    predicted: list[Span],
    alike: Callable[[Span, Span], bool],
    pairs: list[tuple[Span | None, Span | None]],
) -> list[Span]:
    """Move every pair that is alike from `left` to `pairs`; returns the predicted spans that found no partner."""
    rest = []
    for span in predicted:
        place = next((i for i, one in enumerate(left) if alike(one, span)), None)
        if place is None:
            rest.append(span)
        else:
            pairs.append((left.pop(place), span))
    return rest
