"""Names a text may tell of another: by any name, of what it is a kind of, and no ordinary word that looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.constrain import Naming
from domainkit.graph import ConceptGraph

LABELS = ("Chemical", "Disease")
CONCEPTS = """id\tname\tsynonyms\ttypes\tparents\txrefs
D1\tDiabetes Mellitus\tdiabetes\tT047\t\t
D2\tDiabetes Mellitus, Type 2\tNIDDM|type 2 diabetes\tT047\tD1\t
D3\tDiabetes Insipidus\t\tT047\t\t
D4\tHypertension, Portal\t\tT047\tD5\t
D5\tHypertension\t\tT047\t\t
D6\tWiskott-Aldrich Syndrome\tWAS\tT047\t\t
C1\tAspirin\tacetylsalicylic acid\tT109\t\t
C2\tLead\t\tT109\t\t
C3\tLead poisoning\tplumbism\tT047\t\t
"""
TYPES = "tui\tname\tgroup\tentities\nT047\tDisease or Syndrome\tDISO\tDisease\nT109\tOrganic Chemical\tCHEM\tChemical\n"


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ConceptGraph:
    return small_graph(tmp_path_factory.mktemp("graph"))


def small_graph(folder: Path) -> ConceptGraph:
    (folder / "concepts.tsv").write_text(CONCEPTS)
    (folder / "types.tsv").write_text(TYPES)
    (folder / "links.tsv").write_text("head\trelation\ttail\tsource\n")
    (folder / "relations.tsv").write_text("relation\thead\ttail\tsource\tbasis\n")
    return ConceptGraph.load(str(folder))


@pytest.mark.parametrize(
    ("text", "summary", "invented"),
    [
        ("He took acetylsalicylic acid.", "Aspirin was given.", []),  # a synonym
        ("NIDDM was found.", "A case of diabetes.", []),  # what it is a kind of
        ("A case of diabetes.", "NIDDM was found.", ["NIDDM"]),  # but not the other way
        ("Diabetes mellitus.", "diabetes insipidus, diabetes", ["diabetes insipidus"]),
        ("Portal hypertension.", "Hypertension, Portal; hypertension", []),
        ("It hurts.", "There was lead in it; the leading WAS clinic", ["lead", "WAS"]),
        ("Plumbism.", "Lead poisoning", ["Lead"]),  # of each label the longest, as the gazetteer has it
        ("", "", []),
    ],
)
def test_what_is_invented(graph: ConceptGraph, text: str, summary: str, invented: list[str]) -> None:
    naming = Naming.of(graph, LABELS)
    found = naming.invented(summary, naming.supported(text))
    assert [summary[span.start : span.end] for span in found] == invented


def test_names_have_all_their_concepts(graph: ConceptGraph) -> None:
    (span,) = Naming.of(graph, LABELS).find("type 2 diabetes")
    assert (span.label, span.concepts) == ("Disease", ("D2",))
    assert Naming.of(graph, ("Chemical",)).find("type 2 diabetes") == ()


@given(st.text(alphabet="aspirn tleddiabetes,.WAS", max_size=60))
def test_a_text_supports_itself(graph: ConceptGraph, text: str) -> None:
    naming = Naming.of(graph, LABELS)
    assert naming.invented(text, naming.supported(text)) == []
