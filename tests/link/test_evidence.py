"""What speaks for a candidate: each sign from what makes it, and what the mentions of a document say of each other."""

from __future__ import annotations

import numpy as np
import pytest

from domainkit.link.abbreviation import Mention
from domainkit.link.context import with_context
from domainkit.link.embedding import Embedded
from domainkit.link.evidence import Case, Evidence, Sign
from domainkit.link.memory import Memory, Row
from domainkit.link.names import Names
from tests.link.clinic import clinic


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    return Names(clinic(tmp_path_factory.mktemp("graph")))


def case(names: Names, mention: Mention, rows: tuple[Row, ...] = (), embedded: Embedded | None = None) -> Case:
    return Evidence(names, Memory(names, rows), embedded).cases([mention])[0]


def signs(case: Case, ids: str) -> dict[Sign, float]:
    return {sign: float(case.evidence[case.ids.index(ids)][sign]) for sign in Sign}


def test_a_preferred_name(names: Names) -> None:
    found = signs(case(names, Mention("Heart Failure", "Disease")), "D4")
    one = (Sign.SPELLED, Sign.EXACT, Sign.PREFERRED, Sign.NEAR, Sign.NEAREST, Sign.COVERED, Sign.COVERING, Sign.TYPED)
    assert all(found[sign] == pytest.approx(1) for sign in one)
    assert all(found[sign] == 0 for sign in Sign if sign not in one)


def test_a_synonym_in_another_spelling_with_another_label(names: Names) -> None:
    found = signs(case(names, Mention("heart attacks", "Chemical")), "D2")
    assert found[Sign.SPELLED] == 1 and found[Sign.EXACT] == found[Sign.PREFERRED] == found[Sign.TYPED] == 0


def test_words_that_both_have(names: Names) -> None:
    found = signs(case(names, Mention("severe heart failure", "Disease")), "D4")
    assert found[Sign.SPELLED] == 0 and 0 < found[Sign.COVERED] < 1 == pytest.approx(found[Sign.COVERING])


def test_what_was_learned(names: Names) -> None:
    rows = (("heart trouble", "Disease", "D4", 3), ("heart trouble", "Disease", "X1,X2", 1))
    found = case(names, Mention("heart trouble", "Disease"), rows)
    assert signs(found, "D4")[Sign.LEARNED] == pytest.approx(3 / 4.5)
    assert signs(found, "X1,X2")[Sign.ALIKE] == pytest.approx(1 / 4)
    assert signs(found, "D4")[Sign.TYPED] == 1 == found.hows.count("learned") - 1


def test_what_is_above_a_concept_that_the_documents_cannot_know(names: Names) -> None:
    rows = tuple((f"thing {i}", "Disease", f"MESH{i:03}", 1) for i in range(200))  # ids of another shape than D2
    assert signs(case(names, Mention("heart attack", "Disease"), rows), "D1")[Sign.ABOVE_NEW] == pytest.approx(2)
    assert signs(case(names, Mention("heart attack", "Disease")), "D2")[Sign.ABOVE_NEW] == 0


def test_another_name_speaks_unless_the_mention_is_known(names: Names) -> None:
    assert "D6" in case(names, Mention("XB-1", "Chemical", other="tacrolimus")).ids
    known = case(names, Mention("aspirin", "Chemical", other="tacrolimus"))
    assert "D6" not in known.ids or signs(known, "D6")[Sign.SPELLED] == 0


def test_the_last_row_stands_for_none(names: Names) -> None:
    found = case(names, Mention("zzz", "Disease"))
    assert found.ids == found.hows == () and found.evidence.tolist() == [[0.0] * Sign.NONE + [1.0]]


def test_the_embedding_of_the_nearest_name(names: Names) -> None:
    vectors = {"heart attack": [1.0, 0.0], "Myocardial Infarction": [0.0, 2.0], "Heart Attack": [3.0, 4.0]}
    embedded = Embedded(lambda texts: np.array([vectors.get(text, [0.0, 0.0]) for text in texts]))
    found = signs(case(names, Mention("heart attack", "Disease"), embedded=embedded), "D2")
    assert found[Sign.EMBEDDED] == pytest.approx(0.6)


def cases_of(*rows: tuple[str, str, float]) -> list[Case]:
    """One mention for each (mention, id, evidence of SPELLED)."""
    made = []
    for text, id_, spelled in rows:
        evidence = np.zeros((2, len(Sign)), np.float32)
        evidence[0, Sign.SPELLED], evidence[1, Sign.NONE] = spelled, 1
        made.append(Case(Mention(text, "Disease"), (id_,), ("exact",), evidence))
    return made


def test_the_other_mentions_of_a_document_speak() -> None:
    weights = np.zeros(len(Sign))
    weights[Sign.SPELLED] = 2.0
    above = {"D2": ("D1",)}
    given = cases_of(("heart attack", "D2", 1.0), ("MI", "D2", 0.0), ("heart trouble", "D1", 0.0))
    attack, short, trouble = (one.evidence[0] for one in with_context(given, above, weights))
    sure = 1 / (1 + np.exp(-2))
    assert attack[Sign.SAME] == pytest.approx(0.5) and short[Sign.SAME] == pytest.approx(sure)
    assert trouble[Sign.ABOVE] == pytest.approx(sure) and trouble[Sign.SAME] == 0
    assert attack[Sign.BELOW] == short[Sign.BELOW] == pytest.approx(0.5)
    assert not any(one.evidence[:, Sign.SAME].any() for one in given)  # what is given stays as it is


def test_a_mention_does_not_speak_for_itself() -> None:
    weights = np.ones(len(Sign))
    one, other = with_context(cases_of(("MI", "D2", 1.0), ("mi", "D2", 1.0)), {}, weights)
    assert one.evidence[0, Sign.SAME] == other.evidence[0, Sign.SAME] == 0
