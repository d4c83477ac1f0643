"""Annotated documents for the tests of all readers: every script that makes offsets go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from domainkit.data.read import read
from domainkit.data.row import Allowed
from domainkit.types import Span, UserError

LABELS = ("Chemical", "Disease", "סוג")
# Emoji outside the basic plane and joined ones, right-to-left letters and their marks, combining accents, Chinese, and
# characters that str.splitlines (but no file format here) takes for a line's end.
PIECES = ("a", "B", " ", "é", "é", "😀", "👩‍⚕️", "👍🏽", "שָׁלוֹם", "العربية", "‏", "银行", "\u2028", "\x85", "\xa0", "ﬁ")
TRICKY = "😀 aspirin שָׁלוֹם causes é👩‍⚕️ nausea"


def texts(*more: str) -> st.SearchStrategy[str]:
    """Tricky text with something to see in it; `more` pieces as the format allows."""
    return st.lists(st.sampled_from([*PIECES, *more]), min_size=1, max_size=40).map("".join).filter(str.strip)


@st.composite
def spans_in(draw: Any, text: str) -> tuple[Span, ...]:
    """Any spans of a text, nested and crossing ones too, none twice, in the order of the text."""
    bounds = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(lambda pair: pair[0] != pair[1])
    keys = draw(st.lists(st.tuples(bounds.map(sorted).map(tuple), st.sampled_from(LABELS)), max_size=6, unique=True))
    concepts = st.none() | st.sampled_from(["D1", "MESH:D2", "D1,D3"])
    found = [Span(start, end, label, draw(concepts)) for (start, end), label in keys]
    return tuple(sorted(found, key=lambda span: (span.start, -span.end)))


def fault(path: Path, *, format: str = "", allowed: Allowed | None = None) -> str:
    """The message; faults must surface on the call itself, before the first example."""
    with pytest.raises(UserError) as caught:
        read(path, format=format, allowed=allowed)
    return str(caught.value)
