"""Linking from end to end over a small graph: how each candidate is found, what is learned, saved and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainkit.graph import ConceptGraph
from domainkit.link import FILE, SHOWN, UNTAUGHT, Linker
from domainkit.types import Example, Span, UserError
from tests.link.clinic import clinic, document

TAUGHT = [
    document(text.format(i), *named, id=str(i))
    for i in range(20)
    for text, named in (
        (
            "Case {}: heart attack after aspirin, with cardiac pump collapse and bad mood.",
            (
                ("heart attack", "Disease", "D2"),
                ("aspirin", "Chemical", "D3"),
                ("cardiac pump collapse", "Disease", "D4"),
                ("bad mood", "Disease", None),
            ),
        ),
    )
]


def embed(texts: list[str]) -> np.ndarray:
    """Letters counted: (texts, 26)."""
    return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ConceptGraph:
    return clinic(tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def linker(graph: ConceptGraph) -> Linker:
    return Linker(graph)


@pytest.fixture(scope="module")
def taught(graph: ConceptGraph) -> Linker:
    return Linker.taught(graph, TAUGHT)


def first(linker: Linker, mention: str, label: str = "", text: str = "") -> tuple[str, str]:
    """Id of the best candidate and how it was found; "" when none fits."""
    found = linker.link(mention, label=label, text=text)
    return (found[0].id, found[0].how) if found else ("", "")


@pytest.mark.parametrize(
    ("mention", "label", "expected"),
    [
        ("heart attack", "Disease", ("D2", "exact")),
        ("Heart-Attack", "", ("D2", "exact")),
        ("heart attacks", "Disease", ("D2", "normalised")),
        ("failure of the heart", "Disease", ("D4", "normalised")),
        ("acetylsalicylate", "Chemical", ("D3", "normalised")),
        ("myocardial infarct", "Disease", ("D2", "similar")),
        ("acute renal\n failure", "Disease", ("D7", "exact")),
        ("MI", "Disease", ("D2", "exact")),  # the label decides
        ("MI", "Chemical", ("D9", "exact")),
        ("zzz qqq", "Disease", ("", "")),
        ("tremor", "Disease", ("", "")),
        ("", "Disease", ("", "")),
        (" \n", "", ("", "")),
        ("?!", "", ("", "")),
        ("😀", "Disease", ("", "")),
        ("كسل قلبي", "Disease", ("", "")),
    ],
)
def test_the_graph_alone(linker: Linker, mention: str, label: str, expected: tuple[str, str]) -> None:
    assert first(linker, mention, label) == expected


def test_an_abbreviation_means_what_the_document_says(linker: Linker) -> None:
    text = "After acute renal failure (ARF), ARF came back."
    assert first(linker, "ARF", "Disease") != ("D7", "abbreviation")
    assert first(linker, "ARF", "Disease", text) == first(linker, "ARFs", "", text) == ("D7", "abbreviation")
    assert linker.link("ARF", text={"ARF": "acute renal failure"}) == linker.link("ARF", text=text)


def test_candidates_are_probabilities_the_likeliest_first(linker: Linker) -> None:
    found = linker.link("heart failure", label="Disease")
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) < 1 and len(found) <= SHOWN
    assert found[0].score >= linker.learned.threshold and len({one.id for one in found}) == len(found)


def test_what_was_taught(linker: Linker, taught: Linker) -> None:
    assert first(linker, "cardiac pump collapse", "Disease")[1] != "learned"
    assert first(taught, "cardiac pump collapse", "Disease") == ("D4", "learned")
    assert first(taught, "bad mood", "Disease") == ("", "")
    assert first(taught, "heart attacks", "Disease") == ("D2", "normalised")


def test_ids_that_the_graph_does_not_know(graph: ConceptGraph) -> None:
    documents = [
        document(f"Case {i} of tremor and of kidney or heart trouble", ("tremor", "Disease", "X7"),
                 ("kidney or heart trouble", "Disease", "D7,D1"), id=str(i))
        for i in range(20)
    ]  # fmt: skip
    linker = Linker.taught(graph, documents)
    assert first(linker, "tremor", "Disease") == ("X7", "learned")
    assert first(linker, "kidney or heart trouble", "Disease") == ("D7,D1", "learned")


def test_a_document(linker: Linker) -> None:
    text = "\u202bقلب\u202c 👩‍⚕️ MI! Myocardial infarction (MI) after FK-506. Blue sky. MI."
    named = (("Myocardial infarction", "Disease", None), ("FK-506", "Chemical", "WRONG"), ("Blue sky", "Disease", "D1"))
    given = document(text, *named)
    given = replace(given, spans=(*given.spans, Span(len(text) - 3, len(text) - 1, "Disease")), label="kept")
    found = linker.link_document(given)
    assert [span.concept for span in found.spans] == ["D2", "D6", None, "D2"]
    assert replace(found, spans=()) == replace(given, spans=())
    assert [replace(span, concept=None) for span in found.spans] == [replace(s, concept=None) for s in given.spans]


@pytest.mark.parametrize(("other", "expected"), [("Heart attack", "D2"), ("Milrinone", "D9")])
def test_what_else_a_document_names_decides(linker: Linker, other: str, expected: str) -> None:
    found = linker.link_document(document(f"{other} was seen. MI was not.", (other, "", None), ("MI", "", None)))
    assert [span.concept for span in found.spans] == [expected, expected]


@pytest.mark.parametrize("one", [Example(""), Example("no span at all")])
def test_a_document_without_spans(linker: Linker, one: Example) -> None:
    assert linker.link_document(one) == one


def test_spans_that_hold_nothing(linker: Linker) -> None:
    found = linker.link_document(Example("a  b", spans=(Span(1, 3, "Disease"), Span(9, 12, "Disease", "D1"))))
    assert [span.concept for span in found.spans] == [None, None]


def test_pieces_of_a_mention_are_read_without_what_is_between(linker: Linker) -> None:
    text = "heart (and kidney) failure"
    found = linker.link_document(Example(text, spans=(Span(0, 26, "Disease", parts=((0, 5), (19, 26))),)))
    assert found.spans[0].concept == "D4"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), cut=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_any_text_is_linked_and_left_as_it_is(linker: Linker, text: str, cut: tuple[int, int]) -> None:
    given = Example(text, spans=(Span(min(cut), max(cut), "Disease"),))
    found = linker.link_document(given)
    assert found.text == text and found.spans[0].start == min(cut) and found.spans[0].end == max(cut)


# saving and loading


def test_a_saved_linker_gives_the_same_answers(taught: Linker, graph: ConceptGraph, tmp_path: Path) -> None:
    taught.save(tmp_path)
    again = Linker.load(tmp_path, graph)
    assert again.learned == taught.learned
    for mention in ("heart attack", "cardiac pump collapse", "bad mood", "tacrolim", "cardiac pump"):
        assert again.link(mention, label="Disease") == taught.link(mention, label="Disease")


def test_an_untaught_linker_is_saved_too(linker: Linker, graph: ConceptGraph, tmp_path: Path) -> None:
    linker.save(tmp_path)
    assert Linker.load(tmp_path, graph).learned == replace(UNTAUGHT, weights=dict(UNTAUGHT.weights))


def told(**changes: object) -> str:
    return json.dumps({"mentions": [], "weights": {}, "threshold": 0.5, "embedded": False} | changes)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", told(mentions=[["a", "b", "c"]]), told(mentions=3), told(weights=[1]),
        told(weights={"SPELLED": None}), told(weights={"SPELED": 1.0}), told(threshold="high"), "\udcff",
    ],
)  # fmt: skip
def test_a_damaged_file(graph: ConceptGraph, tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"linking\.json: the linker is damaged \(.+\); instead: learn it again"):
        Linker.load(tmp_path, graph)


def test_no_file(graph: ConceptGraph, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"linking\.json: no linker here; instead: a folder that `Linker\.save`"):
        Linker.load(tmp_path, graph)


def test_nothing_to_learn_from(graph: ConceptGraph) -> None:
    with pytest.raises(UserError, match="no span has a concept"):
        Linker.taught(graph, [document("a cold", ("cold", "Disease", None))])


# the embedding


def test_an_embedding_is_asked_for_names_once_and_has_to_come_back(graph: ConceptGraph, tmp_path: Path) -> None:
    asked: list[str] = []

    def count(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return embed(texts)

    linker = Linker.taught(graph, TAUGHT, embed=count)
    assert len(asked) == len(set(asked)) and {"heart attack", "Aspirin"} <= set(asked)
    assert first(linker, "heart attack", "Disease")[0] == "D2"
    linker.save(tmp_path)
    again = Linker.load(tmp_path, graph, embed=embed)
    assert again.link("attack of heart", label="Disease") == linker.link("attack of heart", label="Disease")
    with pytest.raises(UserError, match="this linker embeds names; instead: the backbone's embedding"):
        Linker.load(tmp_path, graph)


def test_an_embedding_that_was_not_learned_with_is_left_alone(graph: ConceptGraph) -> None:
    def never(texts: list[str]) -> np.ndarray:
        raise AssertionError(texts)

    assert first(Linker(graph, embed=never), "heart attack")[0] == "D2"
