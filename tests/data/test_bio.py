"""Tags and spans: what tags can tell comes back as it was, in any script."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.data import bio
from domainkit.types import Span

LABELS = ("Chemical", "Disease")
TEXT = " Heart failure after aspirin, ibuprofen."
OFFSETS = [(0, 0), (0, 6), (6, 14), (14, 20), (20, 25), (25, 28), (28, 29), (29, 39), (39, 40)]


def test_a_span_begins_with_one_tag_and_goes_on_with_another() -> None:
    spans = [Span(1, 14, "Disease"), Span(21, 28, "Chemical"), Span(30, 39, "Chemical")]
    assert bio.tags(spans, TEXT, OFFSETS, LABELS) == (0, 3, 4, 0, 1, 2, 0, 1, 0)
    assert bio.spans((0, 3, 4, 0, 1, 2, 0, 1, 0), TEXT, OFFSETS, LABELS) == tuple(spans)


def test_neighbours_stay_apart() -> None:
    assert bio.spans((1, 1, 2), "abc", [(0, 1), (1, 2), (2, 3)], LABELS) == (
        Span(0, 1, "Chemical"), Span(1, 3, "Chemical"),
    )  # fmt: skip


@pytest.mark.parametrize("tags", [(0, 2, 2), (4, 2, 2)])
def test_a_tag_that_goes_on_with_nothing_begins_a_span(tags: tuple[int, ...]) -> None:
    found = bio.spans(tags, "abc", [(0, 1), (1, 2), (2, 3)], LABELS)
    assert found[-1] == Span(1, 3, "Chemical")


def test_of_spans_that_overlap_the_longer_one_is_told() -> None:
    spans = [Span(21, 28, "Chemical"), Span(1, 28, "Disease")]
    assert bio.tags(spans, TEXT, OFFSETS, LABELS) == (0, 3, 4, 4, 4, 4, 0, 0, 0)


def test_other_labels_and_empty_offsets_stay_outside() -> None:
    assert bio.tags([Span(0, 5, "Gene")], "aspirin", [(0, 0), (0, 7)], LABELS) == (0, 0)
    assert bio.spans((), "", [], LABELS) == ()


@given(st.text(alphabet="ab é👩‍🔬שׁ　\n", min_size=1, max_size=30), st.data())
def test_spans_on_token_borders_come_back(text: str, data: st.DataObject) -> None:
    """Whatever the script; a token is a character here."""
    offsets = [(i, i + 1) for i in range(len(text))]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    inner = [(a, b) for a, b in pairwise(cuts) if text[a:b].strip() == text[a:b]]
    spans = [Span(a, b, LABELS[i % 2]) for i, (a, b) in enumerate(inner)]
    assert bio.spans(bio.tags(spans, text, offsets, LABELS), text, offsets, LABELS) == tuple(spans)
