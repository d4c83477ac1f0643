"""Spans as one tag for each token, and back: BIO, the scheme of the CoNLL shared tasks (Ramshaw & Marcus 1995).

Tag 0 is outside; label i begins with tag 1 + 2 i and goes on with tag 2 + 2 i. Tags say one thing of each token, so of
spans that overlap the longer one is told (the earlier one of two as long), and a discontinuous one is told whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from domainkit.types import Span

OUTSIDE = 0
Offsets = Sequence[tuple[int, int]]  # characters of each token, half-open; empty for a token without any


def begins(label: int) -> int:
    """The tag of a label's first token; the next number is that of its others."""
    return 1 + 2 * label


def tags(spans: Iterable[Span], text: str, offsets: Offsets, labels: Sequence[str]) -> tuple[int, ...]:
    """The tag of each token. Labels that are not among `labels` stay outside.

    A token belongs to a span if any of its characters does but a space, for tokens hold the space before a word.
    """
    found = [OUTSIDE] * len(offsets)
    index = {label: i for i, label in enumerate(labels)}
    known = [span for span in spans if span.label in index]
    for span in sorted(known, key=lambda s: (s.start - s.end, s.start, s.label)):
        inside = list(covered(span.start, span.end, text, offsets))
        if inside and all(found[i] == OUTSIDE for i in inside):
            first = begins(index[span.label])
            for i in inside:
                found[i] = first if i == inside[0] else first + 1
    return tuple(found)


def covered(start: int, end: int, text: str, offsets: Offsets) -> Iterator[int]:
    """The tokens that hold a character from `start` to `end`, the space before a word left out.

    offsets rise, but for those of tokens without characters.
    """
    for i in range(bisect_right(offsets, start, key=itemgetter(1)), len(offsets)):
        a, b = offsets[i]
        if a >= end:
            break
        if a < b and a + (text[a].isspace() and b - a > 1) < end and b > start:
            yield i


def reach(offsets: Offsets) -> tuple[int, int]:
    """The characters that tokens stand between: where the first of them begins, where the last one ends."""
    last = max((b for _, b in offsets), default=0)
    return next((a for a, b in offsets if a < b), last), last


def spans(found: Sequence[int], text: str, offsets: Offsets, labels: Sequence[str]) -> tuple[Span, ...]:
    """The spans that tags tell of, in order, without spaces at their ends.

    A tag that goes on with nothing begins a span, as in the CoNLL evaluation.
    """
    made: list[Span] = []
    first = 0
    for i in range(1, len(found) + 1):
        if i == len(found) or found[i] == OUTSIDE or found[i] % 2 or _label(found[i]) != _label(found[first]):
            if found[first] != OUTSIDE:
                span = _trimmed(offsets[first][0], offsets[i - 1][1], text, labels[_label(found[first])])
                made += [span] if span.start < span.end else []
            first = i
    return tuple(made)


def _label(tag: int) -> int:
    return (tag - 1) // 2


def _trimmed(start: int, end: int, text: str, label: str) -> Span:
    inner = text[start:end]
    return Span(start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip()), label)
