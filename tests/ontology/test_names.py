"""Aliases as they are compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.ontology.names import distinct, normal, spellings, words


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Neoplasms, Oesophageal", "esophageal neoplasm"),
        ("Lupus Erythematosus, Systemic", "systemic lupus erythematosus"),
        ("folic acid", "Folate"),
        ("valproic acids", "valproates"),
        ("Cushing's syndrome", "Cushing syndrome"),
        ("psychoses", "psychosis"),
        ("neuropathies", "neuropathy"),
        ("β-Carotene", "beta carotene"),
        ("sulphonamides", "sulfonamide"),
        ("tumours", "tumor"),
    ],
)
def test_words_of_one_name_in_two_spellings(one: str, other: str) -> None:
    assert words(one) == words(other) != ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("vitamin B1", "vitamin B12"),
        ("hypotension", "hypertension"),
        ("amino acid", "amine"),
        ("vitamin s", "vitamin e"),
    ],
)
def test_words_of_two_names(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_words_of_nothing() -> None:
    assert words("") == words("?! 😀") == () and spellings(()) == ("", "")
    assert words("s") == ("s",) and words(", , ") == ()


@given(st.text())
def test_words_are_whole_and_the_same_in_any_case(text: str) -> None:
    found = words(text)
    assert all(word and not word.isspace() for word in found)
    if text.isascii():
        assert found == words(text.upper()) == words(text.lower())


@pytest.mark.parametrize(
    ("one", "other"),
    [("cancer of the breast", "breast cancer"), ("cancer cancer breast", "cancer breast"), ("the of", "of the")],
)
def test_spellings_in_any_order(one: str, other: str) -> None:
    assert spellings(words(one))[0] == spellings(words(other))[0] != ""


def test_spellings_as_one_word() -> None:
    assert spellings(words("beta-blocker"))[1] == spellings(words("betablocker"))[1] == "betablocker"
