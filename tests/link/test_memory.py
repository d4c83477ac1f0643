"""What annotated documents taught, and how sure it is."""

from __future__ import annotations

import pytest

from domainkit.link.memory import Memory, shape
from domainkit.link.names import Names
from domainkit.ontology.names import words
from tests.link.clinic import clinic, document


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    return Names(clinic(tmp_path_factory.mktemp("graph")))


def share(memory: Memory, mention: str) -> dict[str, float]:
    return memory.share(mention, words(mention))


def test_learn_counts_mentions_and_the_long_forms_of_abbreviations(names: Names) -> None:
    text = "Myocardial infarction (MI). Nothing here."
    one = document(text, ("MI", "Disease", "D2"), ("Nothing", "Disease", None))
    other = document("MI, aspirin", ("MI", "Disease", "D2"), ("aspirin", "Chemical", "D3"))
    assert Memory.learn(names, (one, other)).rows == (
        ("MI", "Disease", "D2", 2),
        ("Myocardial infarction", "Disease", "D2", 1),
        ("aspirin", "Chemical", "D3", 1),
    )


def test_share_grows_with_what_was_seen(names: Names) -> None:
    memory = Memory(names, (("stroke", "Disease", "D2", 1), ("fit", "Disease", "D1", 8), ("fit", "Disease", "D4", 1)))
    assert share(memory, "stroke") == {"D2": pytest.approx(1 / 1.5)}
    assert share(memory, "fit") == {"D1": pytest.approx(8 / 9.5), "D4": pytest.approx(1 / 9.5)}
    assert share(memory, "Strokes") == share(memory, "stroke")  # in any spelling
    assert share(memory, "strike") == share(memory, "") == share(memory, "😀") == {}


def test_alike(names: Names) -> None:
    memory = Memory(names, (("heart attack", "Disease", "D2", 3), ("heart attack", "Disease", "D1", 1)))
    found = {ids: value for ids, form, value in memory.alike("heart attack")}
    assert found == {"D2": pytest.approx(0.75), "D1": pytest.approx(0.25)}
    assert all(0 < value < 0.75 for _, _, value in memory.alike("heart attacker"))
    assert list(memory.alike("qqq")) == list(Memory(names, ()).alike("heart attack")) == []


def test_labels_and_mentions_of_ids(names: Names) -> None:
    memory = Memory(names, (("fit", "Disease", "X1", 1), ("fits", "Disease", "X1", 1)))
    assert memory.labelled("X1", "Disease") and not memory.labelled("X1", "Chemical")
    assert not memory.labelled("D2", "Disease") and memory.written == {"X1": ["fit", "fits"]}


def test_ids_of_a_rare_shape_are_unusual(names: Names) -> None:
    memory = Memory(names, (("a", "Disease", "D000001", 98), ("b", "Disease", "C000001", 1)))
    assert memory.usual("D000009") > memory.usual("C000009") > memory.usual("MONDO:0000001")
    assert Memory(names, ()).usual("D000009") == 0


def test_shape() -> None:
    assert shape("D003643") == "D000000" != shape("D0036435") and shape("D1,D2") == shape("C1,C2") == ","
