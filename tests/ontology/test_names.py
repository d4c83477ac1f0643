"""Aliases as they are compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.ontology.names import distinct, normal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Heart Attack", "heart  attack"),
        ("beta-blocker", "Beta blocker"),
        ("Sjögren's syndrome", "sjogren s syndrome"),
        ("5-(methylamino)-2", "5 methylamino 2"),
        ("naïve", "NAIVE"),
        ("ﬁbrosis", "fibrosis"),
        ("a_b", "a b"),
    ],
)
def test_the_same(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(("one", "other"), [("cold", "colds"), ("alpha", "α"), ("vitamin B1", "vitamin B12")])
def test_not_the_same(one: str, other: str) -> None:
    assert normal(one) != normal(other)


@given(st.text())
def test_normal_is_final_and_has_single_spaces(text: str) -> None:
    once = normal(text)
    assert once == " ".join(once.split())
    assert normal(once) == once


@given(st.text(st.characters(max_codepoint=127)))
def test_case_is_nothing(text: str) -> None:
    assert normal(text) == normal(text.upper()) == normal(text.lower())


def test_distinct() -> None:
    assert distinct("Flu", ("flu", "influenza", "Influenza", "?", "grippe")) == ("influenza", "grippe")
