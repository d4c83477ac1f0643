"""Texts written token by token under a rule: never unfit, never stuck, and free where nothing is unfit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.gazetteer import Gazetteer
from domainkit.model.draft import LOOP, Draft

TOKENS = ("<end>", " acid", "osis", " lead", " poison", "ing", ".", " tin", " folic", "s", "\n", " a", "é", "le", "ad")
NAMES = Gazetteer([(name, 0) for name in ("acid", "lead", "tin", "folic acid", "lead poisoning")], ("Chemical",))
ALLOWED = ("lead poisoning",)


def spell(ids: Sequence[int]) -> str:
    return "".join(TOKENS[i] for i in ids if i)


def unfit(text: str) -> list[int]:
    return [end for start, end, _ in NAMES.find(text) if text[start:end] not in ALLOWED]


def written(likely: Sequence[Sequence[str]], *, free: bool = False) -> str:
    """What is written when these are the likely tokens at each step, the draft's own limit being their number."""
    draft = Draft(spell, {0}, None if free else unfit)
    for tokens in likely:
        if not draft.done:
            draft.advance([TOKENS.index(token) for token in tokens])
    return draft.text


@pytest.mark.parametrize(
    ("likely", "expected"),
    [
        ([[" acid", " a"], ["osis"], ["<end>"]], "acidosis"),  # more letters made another word of it
        ([[" acid", " a"], [".", "<end>"], ["."]], "a."),  # none came: the word is taken back
        ([[" acid"], ["s"], [" a", "<end>"]], ""),  # nothing else was likely
        ([[" a"], [" tin", "é"], ["."], ["."], ["<end>"]], "aé."),  # only the last word
        ([[" a"], [" tin"]], "a"),  # cut off within a word that may not stand
        ([[" a"], ["\n"], [" a"]], "a"),  # one line
        ([[" lead", " a"], [" poison", "."], ["<end>"]], "a"),  # though "lead poisoning" may stand: "lead" may not
        ([[" folic", " a"], [" acid", "osis"], ["."], ["<end>"]], "folicosis"),  # not the name's first word
    ],
)
def test_what_is_unfit_is_not_written(likely: list[list[str]], expected: str) -> None:
    assert written(likely) == expected


@pytest.mark.parametrize("period", [1, 2, 5])
def test_a_text_that_repeats_itself_ends(period: int) -> None:
    loop = (["é", " a", "osis", "le", "."] * 10)[:period]
    draft = Draft(spell, {0})
    for token in [" folic", *loop * 20]:
        if not draft.done:
            draft.advance([TOKENS.index(token)])
    assert draft.done and draft.text == "".join(["folic", *loop])


likely_tokens = st.lists(st.permutations(TOKENS).map(lambda order: order[:4]), max_size=LOOP)


@given(likely_tokens)
def test_no_text_is_unfit_and_a_free_one_is_greedy(likely: list[list[str]]) -> None:
    assert not unfit(written(likely))
    first = [tokens[0] for tokens in likely]
    greedy = first[: next((i for i, token in enumerate(first) if token in ("<end>", "\n")), len(first))]
    assert written(likely, free=True) == "".join(greedy).strip()


@given(likely_tokens)
def test_a_rule_that_forbids_nothing_changes_nothing(likely: list[list[str]]) -> None:
    draft, free = Draft(spell, {0}, lambda text: ()), Draft(spell, {0})
    for tokens in likely:
        for one in (draft, free):
            if not one.done:
                one.advance([TOKENS.index(token) for token in tokens])
    assert draft.text == free.text and draft.tokens == free.tokens
