"""What a document says of its own mentions: abbreviations, names in brackets, mentions as they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.link.abbreviation import Mention, abbreviations, expand, long_form, mentions, surface
from domainkit.types import Example, Span

WORD = st.from_regex("[klmn][abcd]{1,7}", fullmatch=True)  # no letter within a word begins one


def example(text: str, *names: str, label: str = "Disease") -> Example:
    """A document in which each of the names is a span, the first time that it stands there."""
    spans = tuple(Span(text.index(name), text.index(name) + len(name), label) for name in names)
    return Example(text, spans=spans)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Myocardial infarction (MI) was rare.", {"MI": "Myocardial infarction"}),
        ("acute myocardial infarction (MI)", {"MI": "myocardial infarction"}),  # the shortest
        ("heparin-induced thrombocytopenia (HIT)", {"HIT": "heparin-induced thrombocytopenia"}),
        ("a drug (TAC; see below) and tacrolimus (TAC, the drug)", {"TAC": "tacrolimus"}),
        ("status epilepticus ('SE')", {"SE": "status epilepticus"}),
        ("5-hydroxytryptamine (5-HT)", {"5-HT": "5-hydroxytryptamine"}),
        ("N-(2-propyl) dopamine (ND)", {"ND": "N-(2-propyl) dopamine"}),
        ("one thing (OT) and only this (OT)", {"OT": "one thing"}),  # the first
        ("It was a mouse. Ischaemia (MI)", {}),  # not over the end of a sentence
        ("aspirin (100 mg) twice (n = 5) (2) (in a mouse that was very ill)", {}),
        ("MI (MI) and () and (((", {}),
        ("", {}),
    ],
)
def test_abbreviations(text: str, expected: dict[str, str]) -> None:
    assert abbreviations(text) == expected


@given(st.lists(WORD, min_size=2, max_size=6), st.lists(WORD, max_size=4))
def test_initials_are_always_found(words: list[str], before: list[str]) -> None:
    short = "".join(word[0] for word in words).upper()
    assert abbreviations(" ".join(("zzz", *before, *words, f"({short})"))) == {short: " ".join(words)}


@given(st.text("abAB1- ", max_size=6), st.text("abAB1- (", max_size=20))
def test_a_long_form_ends_the_text_and_has_the_characters_in_order(short: str, before: str) -> None:
    long = long_form(short, before)
    assert before.endswith(long)
    if long:
        rest = iter(long.lower())
        assert all(char in rest for char in short.lower() if char.isalnum())
        assert len(long) == len(before) or before[-len(long) - 1] == " "


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for short, long in abbreviations(text).items():
        assert len(short) <= 10 and len(long) > len(short)


def test_a_long_document_is_read_at_once() -> None:
    assert abbreviations("tumour necrosis factor (TNF) in mice " * 20_000) == {"TNF": "tumour necrosis factor"}


def test_expand() -> None:
    defined = {"MI": "myocardial infarction"}
    assert expand("MI", defined) == expand("MIs", defined) == "myocardial infarction"
    assert expand("mi", defined) == expand("M", defined) == expand("", defined) == ""


def test_surface() -> None:
    text = "breast and  ovarian\n cancer"
    assert surface(Example(text), Span(11, 27, "Disease")) == "ovarian cancer" == " ".join(text[11:27].split())
    assert surface(Example(text), Span(0, 27, "Disease", parts=((0, 6), (21, 27)))) == "breast cancer"


def test_mentions_are_told_once_with_what_they_abbreviate() -> None:
    one = example("Myocardial infarction (MI). MI again, two MIs.", "Myocardial infarction", "MI", "MIs")
    assert mentions(one) == {
        ("Myocardial infarction", "Disease"): Mention("Myocardial infarction", "Disease"),
        ("MI", "Disease"): Mention("MI", "Disease", "Myocardial infarction"),
        ("MIs", "Disease"): Mention("MIs", "Disease", "Myocardial infarction"),
    }


def test_initials_stand_for_a_mention_that_is_not_beside_them() -> None:
    one = example("Renal failure was seen. In RF, dialysis helps.", "Renal failure", "RF")
    assert mentions(one)["RF", "Disease"].long == "Renal failure"
    apart = Example(one.text, spans=(one.spans[0], Span(27, 29, "Chemical")))  # another label, so another thing
    assert mentions(apart)["RF", "Chemical"] == Mention("RF", "Chemical")


def test_letters_stand_for_the_only_mention_that_has_them() -> None:
    text = "Cyclophosphamide was given. After CPA, mice died. {} too."
    assert mentions(example(text, "Cyclophosphamide", "CPA"))["CPA", "Disease"].other == "Cyclophosphamide"
    both = example(text.format("Chloropropamide"), "Cyclophosphamide", "CPA", "Chloropropamide")
    assert mentions(both)["CPA", "Disease"].other == ""


def test_a_name_in_brackets_is_another_name() -> None:
    found = mentions(example("FK506 (tacrolimus) was given", "FK506", "tacrolimus"))
    assert found["FK506", "Disease"].other == "tacrolimus" and found["tacrolimus", "Disease"].other == "FK506"
    assert mentions(example("FK506, tacrolimus", "FK506", "tacrolimus"))["FK506", "Disease"].other == ""
