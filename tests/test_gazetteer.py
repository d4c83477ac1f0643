"""Names of a graph in running text: whole words, any case, right offsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.gazetteer import Gazetteer
from domainkit.graph import ConceptGraph

LABELS = ("Chemical", "Disease")
NAMES = [("aspirin", 0), ("heart failure", 1), ("failure", 1), ("Hypertension, Portal", 1), ("portal hypertension", 1),
         ("tin", 0), ("ın", 0), ("lead", 0), ("lead", 1)]  # fmt: skip


@pytest.fixture(scope="module")
def names() -> Gazetteer:
    return Gazetteer(NAMES, LABELS)


def found(names: Gazetteer, text: str) -> list[tuple[str, str]]:
    return [(text[start:end], LABELS[label]) for start, end, label in names.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Aspirin and HEART FAILURE.", [("Aspirin", "Chemical"), ("HEART FAILURE", "Disease")]),  # the longest
        ("heart failures", [("heart failure", "Disease")]),
        ("preaspirin aspirinate aspirin-like", [("aspirin", "Chemical")]),
        ("in tin of lead", [("tin", "Chemical"), ("lead", "Chemical"), ("lead", "Disease")]),
        ("İİİ aspirin", [("aspirin", "Chemical")]),
        ("👩‍🔬 לקח aspirin", [("aspirin", "Chemical")]),
        ("", []),
    ],
)
def test_whole_words_in_any_case(names: Gazetteer, text: str, expected: list[tuple[str, str]]) -> None:
    assert sorted(found(names, text)) == sorted(expected)


def test_hints_are_bits_for_each_token(names: Gazetteer) -> None:
    text = "A heart failure by lead"
    offsets = [(0, 0), (0, 1), (1, 7), (7, 15), (15, 18), (18, 23)]
    assert names.hints(names.marks(text), text, offsets) == (0, 0, 0b0100, 0b1000, 0, 0b0101)


@given(st.text(alphabet="aspirn tle👍İ-", max_size=40))
def test_offsets_are_those_of_the_text(text: str) -> None:
    for start, end, label in Gazetteer(NAMES, LABELS).find(text):
        assert (text[start:end].replace("İ", "ı").lower(), label) in [(name.lower(), i) for name, i in NAMES]


def test_a_graph_speaks_for_the_labels_of_its_concepts() -> None:
    graph: Any = ConceptGraph.load("medical")
    names = Gazetteer.of_graph(graph, LABELS)
    told = found(names, "Portal hypertension after acetylsalicylic acid; the committee agreed.")
    assert ("Portal hypertension", "Disease") in told and ("acetylsalicylic acid", "Chemical") in told
    assert not any("committee" in name for name, _ in told)
    assert Gazetteer.of_graph(graph, ("Nothing",)).marks("aspirin") == []
    assert Path(graph.path).name == "medical"


def test_semantic_types_and_labels_are_told_by_the_same_names() -> None:
    graph: Any = ConceptGraph.load("medical")
    types, labels = Gazetteer.of_types(graph, LABELS), Gazetteer.of_graph(graph, LABELS)
    text = "Aspirin for diabetes mellitus, pain and depression in insulin resistance"
    told = {text[start:end] for start, end, _ in labels.find(text)}
    assert told == {text[start:end] for start, end, _ in types.find(text)} >= {"Aspirin", "pain"}
    by_name = {(text[start:end], types.labels[i]) for start, end, i in types.find(text)}
    assert {("Aspirin", "T109"), ("pain", "T184")} <= by_name  # organic chemical; sign or symptom


def test_an_abbreviation_speaks_for_the_name_it_stands_for(names: Gazetteer) -> None:
    text = "chronic heart failure (CHF): CHF, not XCHF"
    offsets = [(0, 0), *((i, i + 1) for i in range(len(text)))]
    hints = names.hints(names.marks(text), text, offsets)
    assert {i - 1 for i, bits in enumerate(hints) if bits & 0b0100} == {8, 23, 29}  # where a disease begins
    assert {text[start:end] for start, end, _ in names.marks(text.replace("(CHF)", "or CHF"))} == {"heart failure"}
