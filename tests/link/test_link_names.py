"""The names of a graph: any spelling, the nearest by trigrams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domainkit.graph import ConceptGraph
from domainkit.link.names import ANY, OWN, Names, names_of, nearest
from domainkit.ontology.names import words
from tests.link.clinic import clinic
from tests.test_graph import write_graph


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    return Names(clinic(tmp_path_factory.mktemp("graph")))


def near(names: Names, form: str, label: str = "") -> list[tuple[str, float]]:
    """(concept, cosine) of the names nearest to a form."""
    return [(names.owners[number][0], cosine) for number, cosine in names.near([(form, label)])[form, label]]


@pytest.mark.parametrize(
    ("mention", "expected"),
    [
        ("attacks, heart", ("D2",)),
        ("esophageal neoplasm", ("D5",)),
        ("acetylsalicylate", ("D3",)),
        ("FK 506", ("D6",)),  # as one word
        ("failure of the heart", ("D4",)),
        ("mi", ("D2", "D9")),
        ("heart", ()),
        ("", ()),
        ("😀", ()),
    ],
)
def test_any_spelling(names: Names, mention: str, expected: tuple[str, ...]) -> None:
    assert names.find(words(mention)) == expected


def test_the_nearest_names(names: Names) -> None:
    assert near(names, "aspirin")[0] == ("D3", pytest.approx(1.0))
    first, cosine = near(names, "tacrolim")[0]
    assert first == "D6" and 0.5 < cosine < 1
    assert near(names, "zzz qqq") == near(names, "") == []
    assert len(names.near([("aspirin", ""), ("aspirin", "Disease"), ("aspirin", "")])) == 2


def test_the_nearest_names_of_a_label_come_in_however_far_they_are(tmp_path: Path) -> None:
    rows = [f"D{i}\theart drug {i}\t\tT109\t\t" for i in range(40)] + ["D99\theartworm infection\t\tT047\t\t"]
    names = Names(ConceptGraph.load(str(write_graph(tmp_path, tuple(rows), ()))))
    found = [id_ for id_, _ in near(names, "heart drug", "Disease")]
    assert found[-1] == "D99" and len(found) == ANY + 1
    assert len(near(names, "heart drug", "Chemical")) == len(near(names, "heart drug")) == OWN


def test_types_agree(names: Names) -> None:
    assert names.agrees("D3", "Chemical") and names.agrees("D3", "") and not names.agrees("D3", "Disease")
    assert names.agrees("D8", "Gene") and not names.agrees("D8", "Illness")


def test_rare_words_count_more(names: Names) -> None:
    assert names.rarity("zzz") > names.rarity("tacrolimus") > names.rarity("heart") > 0


def test_preferred_names(names: Names) -> None:
    assert names.preferred["D2"] == "myocardial infarction" and names.preferred["D7"] == " ".join(
        words("acute kidney failure")
    )


def test_a_graph_is_prepared_once(tmp_path: Path) -> None:
    one, other = clinic(tmp_path), clinic(tmp_path)
    assert names_of(one) is names_of(one) is not names_of(other)


def test_a_graph_without_names(tmp_path: Path) -> None:
    names = Names(ConceptGraph.load(str(write_graph(tmp_path, ("D1\t?\t\tT047\t\t",), ()))))
    assert names.near([("x", "")]) == {} and names.find(("x",)) == ()


def test_nearest_keeps_the_order_of_ties() -> None:
    columns, cosines = np.array([9, 3, 5, 7]), np.array([0.5, 0.5, 0.9, 0.1])
    assert nearest(columns, cosines, 2) == [(5, 0.9), (3, 0.5)]
    assert nearest(columns, cosines, 9) == [(5, 0.9), (3, 0.5), (9, 0.5), (7, 0.1)]
    assert nearest(columns[:0], cosines[:0], 2) == []
