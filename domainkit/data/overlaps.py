"""How often mentions are nested, cross, or are discontinuous: what a tagger with one tag per token cannot tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from domainkit.data.row import argument_names
from domainkit.types import Example, Span


@dataclass(frozen=True)
class Overlaps:
    """Numbers of spans; one span may count in several fields."""

    spans: int = 0
    nested: int = 0  # lie within another span of the document, or cover the same stretch
    crossing: int = 0  # share some characters with another span, neither lying within the other
    discontinuous: int = 0  # something but space lies between their pieces
    composite: int = 0  # have several concept ids
    unlinked: int = 0  # have none


def overlaps(examples: Iterable[Example]) -> Overlaps:
    """Count over all examples."""
    total = [0, 0, 0, 0, 0, 0]
    for example in examples:
        nested, crossing = _overlapping(example.spans)
        found = (
            len(example.spans), nested, crossing,
            sum(is_discontinuous(span, example.text) for span in example.spans),
            sum(len(span.concepts) > 1 for span in example.spans),
            sum(not span.concepts for span in example.spans),
        )  # fmt: skip
        total = [a + b for a, b in zip(total, found, strict=True)]
    return Overlaps(*total)


def is_discontinuous(span: Span, text: str) -> bool:
    """Whether something but space lies between the pieces of a span."""
    return any(text[end:start].strip() for (_, end), (start, _) in pairwise(span.parts))


def mentions(example: Example) -> dict[str, tuple[Span, ...]]:
    """What relations may link → the spans that name it, in the order of the text.

    A concept id, or "start:end" for a span that is not linked. A composite mention counts for each of its ids.
    """
    found: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(example.spans, key=lambda span: (span.start, span.end)):
        for name in dict.fromkeys(argument_names(span)):
            found[name].append(span)
    return {name: tuple(spans) for name, spans in found.items()}


def _overlapping(spans: Sequence[Span]) -> tuple[int, int]:
    """How many spans are nested in another one, and how many cross one."""
    nested, crossing = set[int](), set[int]()
    ordered = sorted(range(len(spans)), key=lambda i: (spans[i].start, -spans[i].end))
    open_: list[int] = []  # spans that may reach beyond the next one's start
    for i in ordered:
        span = spans[i]
        open_ = [j for j in open_ if spans[j].end > span.start]
        for j in open_:
            if span.end <= spans[j].end:
                nested.add(i)
                if (span.start, span.end) == (spans[j].start, spans[j].end):
                    nested.add(j)
            else:
                crossing |= {i, j}
        open_.append(i)
    return len(nested), len(crossing)
