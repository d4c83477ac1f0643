"""Nested, crossing and discontinuous mentions are counted as they are defined."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.data.overlaps import Overlaps, mentions, overlaps
from domainkit.types import Example, Span
from tests.data.annotated import spans_in

TEXT = "severe liver and renal failure by aspirin"


@pytest.mark.parametrize(
    ("bounds", "nested", "crossing"),
    [
        ([(0, 5), (5, 9)], 0, 0),
        ([(0, 9), (2, 5)], 1, 0),
        ([(0, 9), (0, 5), (5, 9)], 2, 0),
        ([(0, 9), (0, 9)], 2, 0),
        ([(0, 9), (0, 9), (0, 9)], 3, 0),
        ([(0, 5), (3, 9)], 0, 2),
        ([(0, 9), (2, 5), (4, 12)], 1, 3),
        ([(4, 12), (0, 9), (20, 30)], 0, 2),
    ],
)
def test_nested_and_crossing(bounds: list[tuple[int, int]], nested: int, crossing: int) -> None:
    spans = tuple(Span(start, end, str(i)) for i, (start, end) in enumerate(bounds))
    found = overlaps([Example(TEXT, spans)])
    assert (found.spans, found.nested, found.crossing) == (len(bounds), nested, crossing)


@given(st.data())
def test_counts_are_those_of_the_definition(data: Any) -> None:
    spans = data.draw(spans_in(TEXT))
    within = {
        a for a in spans for b in spans if a is not b and b.start <= a.start and a.end <= b.end
    }  # fmt: skip
    cross = {
        s for a in spans for b in spans if a.start < b.start < a.end < b.end for s in (a, b)
    }  # fmt: skip
    found = overlaps([Example(TEXT, spans)])
    assert (found.nested, found.crossing) == (len(within), len(cross))


def test_discontinuous_composite_and_unlinked() -> None:
    spans = (
        Span(0, 30, "Disease", "D1,D2", ((0, 12), (23, 30))),
        Span(17, 30, "Disease", "D1", ((17, 22), (23, 30))),  # nothing but a space between
        Span(34, 41, "Chemical"),
    )
    one = Example(TEXT, spans)
    assert overlaps([one]) == Overlaps(spans=3, nested=1, discontinuous=1, composite=1, unlinked=1)
    assert overlaps([one, one]) == Overlaps(spans=6, nested=2, discontinuous=2, composite=2, unlinked=2)
    assert overlaps([]) == Overlaps()
    assert mentions(one) == {"D1": spans[:2], "D2": spans[:1], "34:41": spans[2:]}
