"""The concept graph: read as written, every fault with its line, the shipped one sound and quick."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit import assets
from domainkit.graph import Concept, ConceptGraph, Link, check
from domainkit.ontology.rows import CONCEPT_COLUMNS, LINK_COLUMNS
from domainkit.ontology.table import RELATION_COLUMNS, TYPE_COLUMNS, TypeTable
from domainkit.types import UserError

TYPES = ("T047\tDisease or Syndrome\tDISO\tDisease", "T109\tOrganic Chemical\tCHEM\tChemical",
         "T116\tProtein\tCHEM\tChemical|Gene")  # fmt: skip
RELATIONS = ("causes\tChemical\tDisease\tdomainkit\tsilent", "binds\tGene\tGene\tbiolink\tgene → gene")
CONCEPTS = (
    "D1\tHeart Diseases\tcardiac disease|Diseases, Heart\tT047\t\tUMLS:C1|DOID:1",
    "D2\tMyocardial Infarction\tHeart Attack|MI\tT047\tD1\tUMLS:C2",
    "D3\tAspirin\tAcetylsalicylic Acid\tT109\t\t",
    "MONDO:4\tSjögren syndrome\tMI\tT047\tD2|D1\tUMLS:C2",
    "D5\tInsulin\t\tT116\t\t",
)
NO_TABLE = TypeTable({}, ())
LINKS = ("D3\tcauses\tD2\tme", "D5\tbinds\tD5\tme")


def write_graph(
    folder: Path,
    concepts: tuple[str, ...] = CONCEPTS,
    links: tuple[str, ...] = LINKS,
    types: tuple[str, ...] = TYPES,
    relations: tuple[str, ...] = RELATIONS,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, rows in (
        ("concepts", CONCEPT_COLUMNS, concepts), ("links", LINK_COLUMNS, links), ("types", TYPE_COLUMNS, types),
        ("relations", RELATION_COLUMNS, relations),
    ):  # fmt: skip
        text = "".join(f"{line}\n" for line in ("\t".join(columns), *rows))
        (folder / f"{name}.tsv").write_bytes(text.encode())
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        ConceptGraph.load(str(folder))
    return str(caught.value)


@pytest.fixture
def graph(tmp_path: Path) -> ConceptGraph:
    return ConceptGraph.load(str(write_graph(tmp_path / "g")))


# reading and looking up


def test_concepts_as_they_are_meant(graph: ConceptGraph) -> None:
    assert list(graph.concepts) == ["D1", "D2", "D3", "MONDO:4", "D5"]
    assert graph.concept("D2") == Concept(
        "D2", "Myocardial Infarction", ("Heart Attack", "MI"), ("T047",), ("UMLS:C2",)
    )
    assert graph.concept("MESH:D2") is graph.concept("D2")
    assert graph.links == (Link("D3", "causes", "D2", "me"), Link("D5", "binds", "D5", "me"))
    with pytest.raises(UserError, match=r"unknown concept 'D9'"):
        graph.concept("D9")


@pytest.mark.parametrize(
    "written", ["heart attack", "HEART ATTACK", "Heart-Attack", " heart  attack.", "ｈeart attack"]
)
def test_find_is_not_about_case_and_punctuation(graph: ConceptGraph, written: str) -> None:
    assert graph.find(written) == ("D2",)


def test_find_puts_preferred_names_first(tmp_path: Path) -> None:
    rows = ("D1\tFlu\tCold\tT047\t\t", "D2\tCold\tchill\tT047\t\t", "D3\tChill\tcold\tT047\t\t")
    graph = ConceptGraph.load(str(write_graph(tmp_path / "g", rows, ())))
    assert graph.find("cold") == ("D2", "D1", "D3") and graph.find("chill") == ("D3", "D2")
    assert graph.find("heat") == graph.find("") == graph.find("?!") == ()


def test_accents(graph: ConceptGraph) -> None:
    assert graph.find("Sjogren Syndrome") == graph.find("SJÖGREN SYNDROME") == ("MONDO:4",)


def test_cross_references(graph: ConceptGraph) -> None:
    assert graph.find_xref("UMLS:C2") == ("D2", "MONDO:4")
    assert graph.find_xref("MESH:D2") == ("D2",)
    assert graph.find_xref("MESH:D9") == graph.find_xref("D2") == graph.find_xref("UMLS:C9") == ()


def test_the_hierarchy(graph: ConceptGraph) -> None:
    assert graph.parents("MONDO:4") == ("D2", "D1") and graph.children("D1") == ("D2", "MONDO:4")
    assert graph.ancestors("MONDO:4") == ("D2", "D1") and graph.ancestors("D1") == ()
    assert graph.is_a("MONDO:4", "D1") and graph.is_a("D1", "D1") and graph.is_a("MESH:D2", "MESH:D1")
    assert not graph.is_a("D1", "D2") and not graph.is_a("D3", "D1")
    for ask in (graph.parents, graph.children, graph.ancestors, graph.types, graph.links_of):
        with pytest.raises(UserError, match="unknown concept"):
            ask("D9")


def test_types_and_relations_of_a_concept(graph: ConceptGraph) -> None:
    assert graph.types("D5") == ("T116",) and graph.entities("D5") == ("Chemical", "Gene")
    assert graph.links_of("D2") == graph.links_of("D3") == graph.links[:1]
    assert graph.links_of("D5") == graph.links[1:] and graph.links_of("D1") == ()  # to itself: told once


def test_names_for_a_gazetteer(graph: ConceptGraph) -> None:
    names = list(graph.aliases())
    assert names[:5] == [(one.name, one.id) for one in graph.concepts.values()]
    assert ("MI", "D2") in names and ("MI", "MONDO:4") in names and len(names) == 11


def test_the_type_table(graph: ConceptGraph) -> None:
    assert graph.relations == ("causes", "binds")
    assert graph.allows("Chemical", "causes", "Disease") and graph.allows("T109", "causes", "T047")
    assert graph.allows("T116", "causes", "Disease") and graph.allows("T116", "binds", "Gene")
    assert not graph.allows("Disease", "causes", "Chemical") and not graph.allows("T047", "causes", "T109")
    assert not graph.allows("Gene", "causes", "Disease")  # though some proteins are chemicals
    assert not graph.allows("T109", "binds", "Gene")
    with pytest.raises(UserError, match=r"unknown relation 'cures'.*'causes'"):
        graph.allows("Chemical", "cures", "Disease")
    with pytest.raises(UserError, match=r"unknown type 'Drug'.*'Chemical'"):
        graph.allows("Drug", "causes", "Disease")


def test_gzipped_or_not_windows_or_not(tmp_path: Path, graph: ConceptGraph) -> None:
    folder = write_graph(tmp_path / "other")
    for file in list(folder.iterdir()):
        raw = b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n")
        file.unlink()
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(raw))
    other = ConceptGraph.load(str(folder))
    assert (other.concepts, other.above, other.links, other.table) == (
        graph.concepts, graph.above, graph.links, graph.table,
    )  # fmt: skip


def test_where_graphs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ROOT", tmp_path / "shipped")
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shipped = write_graph(tmp_path / "shipped" / "ontologies" / "law")
    built = write_graph(tmp_path / "cache" / "ontologies" / "law-full")
    write_graph(tmp_path / "mine")
    assert [ConceptGraph.load(name).path for name in ("law", "law-full", "mine", "./mine")] == [
        shipped, built, Path("mine"), Path("mine"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"unknown graph 'lw'; instead: 'law' \(one of \['law', 'law-full'\]"):
        ConceptGraph.load("lw")
    with pytest.raises(UserError, match=r"no such folder; instead: a folder with concepts.tsv, links.tsv"):
        ConceptGraph.load("./nowhere")


# faults

FORM = {  # file, its rows, the line, what is said
    "columns": ("concepts", (CONCEPTS[0], "D2\tx"), 3, "2 columns, not 6; instead: id, name, synonyms"),
    "no id": ("concepts", ("\tx\t\tT047\t\t",), 2, "no id"),
    "id twice": ("concepts", (CONCEPTS[0], CONCEPTS[0]), 3, "D1 stands in this file twice"),
    "no name": ("concepts", ("D1\t\t\tT047\t\t",), 2, "D1 has no name"),
    "no type": ("concepts", ("D1\tx\t\t\t\t",), 2, "D1 has no type"),
    "empty synonym": ("concepts", ("D1\tx\ta||b\tT047\t\t",), 2, "an empty value"),
    "open end": ("concepts", ("D1\tx\ta\tT047\tD1|\t",), 2, "an empty value"),
    "columns of a link": ("links", ("D3\tcauses\tD2",), 2, "3 columns, not 4"),
    "bad type": ("types", ("T47\tx\tDISO\tDisease",), 2, "bad semantic type 'T47'; instead: a UMLS code: T047"),
    "type twice": ("types", (*TYPES, TYPES[0]), 5, "T047 stands in this file twice"),
    "no entity type": ("types", ("T047\tx\tDISO\t",), 2, "an empty value"),
    "unknown entity type": ("relations", ("causes\tDrug\tDisease\tme\t",), 2, "unknown entity type 'Drug'"),
    "pair twice": ("relations", (RELATIONS[0],) * 2, 3, "causes from Chemical to Disease stands in this file twice"),
    "no source": ("relations", ("causes\tChemical\tDisease\t\t",), 2, "an empty value"),
}


@pytest.mark.parametrize("name", FORM)
def test_each_fault_of_form_names_its_line(tmp_path: Path, name: str) -> None:
    file, rows, line, said = FORM[name]
    folder = write_graph(tmp_path / "g", **{"concepts": CONCEPTS[:1], "links": (), file: rows})
    assert f"{folder / file}.tsv:{line}: {said}" in refused(folder)


MEANING = {
    "dangling parent": ("concepts", ("D1\tx\t\tT047\tD9\t",), 2, "D1 is a kind of 'D9', which is no concept"),
    "unknown type": ("concepts", (CONCEPTS[2], "D1\tx\t\tT047|T999\t\t"), 3, "D1 has the type 'T999'"),
    "same name": ("concepts", (CONCEPTS[2], "D9\taspirin\t\tT047\t\t"), 3, "D9 has the same preferred name as line 2"),
    "own parent": ("concepts", ("D1\tx\t\tT047\tD1\t",), 2, "is-a goes in a circle: D1 → D1"),
    "end of a link": ("links", (LINKS[0], "D3\tcauses\tD9\tme"), 3, "'D9' is no concept"),
    "unknown relation": ("links", ("D3\tcures\tD2\tme",), 2, "unknown relation 'cures'"),
    "wrong direction": ("links", ("D2\tcauses\tD3\tme",), 2, "D2 causes D3: relations.tsv has no row for T047 → T109"),
}


@pytest.mark.parametrize("name", MEANING)
def test_each_fault_of_meaning_names_its_line(tmp_path: Path, name: str) -> None:
    file, rows, line, said = MEANING[name]
    folder = write_graph(tmp_path / "g", **{"links": (), file: rows})
    found = [str(fault) for fault in check(ConceptGraph.read(folder)) if not fault.warning]
    assert len(found) == 1 and found[0].startswith(f"{folder / file}.tsv:{line}: {said}")
    assert refused(folder) == found[0]


def test_a_cycle_is_one_message_with_its_ids_and_never_endless(tmp_path: Path) -> None:
    rows = tuple(f"D{i}\tname {i}\t\tT047\tD{i % 4 + 1}\t" for i in range(1, 5))  # 1 → 2 → 3 → 4 → 1
    folder = write_graph(tmp_path / "g", (*rows, "D5\tleaf\t\tT047\tD2\t"), ())
    assert refused(folder) == (
        f"{folder / 'concepts.tsv'}:5: is-a goes in a circle: D1 → D2 → D3 → D4 → D1; "
        "instead: take one of these parents out"
    )
    graph = ConceptGraph.read(folder)
    assert graph.ancestors("D5") == ("D2", "D3", "D4", "D1") and graph.is_a("D1", "D1")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    folder = write_graph(tmp_path / "g", ("D1\tx\t\tT047\tD7|D8\t", "D2\tX\t\tT999\t\t"), ("D1\tcures\tD9\tme",))
    message = refused(folder)
    assert message.startswith(f"{folder}: 6 faults\n") and message.endswith("and 1 more")
    assert message.count("concepts.tsv:2: ") == 2 and message.count("concepts.tsv:3: ") == 2


def test_shared_aliases_are_a_warning(graph: ConceptGraph) -> None:
    (warning,) = check(graph)
    assert warning.warning and "1 aliases belong to several concepts, 'mi' to D2 and MONDO:4" in str(warning)


@pytest.mark.parametrize("name", ["concepts", "links", "types", "relations"])
def test_a_missing_or_empty_or_foreign_file(tmp_path: Path, name: str) -> None:
    folder = write_graph(tmp_path / "g")
    file = folder / f"{name}.tsv"
    file.write_bytes(b"")
    assert f"{file}:1: the file is empty; instead: the header" in refused(folder)
    file.write_text("id,name\n")
    assert f"{file}:1: wrong header 'id,name'; instead: '" in refused(folder)
    file.unlink()
    assert f"{file}: no such file; instead: a TSV file" in refused(folder)


def test_damaged_bytes(tmp_path: Path) -> None:
    folder = write_graph(tmp_path / "g")
    file = folder / "concepts.tsv"
    whole = file.read_bytes()
    file.write_bytes(whole.replace("ö".encode(), "ö".encode("latin1")))
    assert f"{file}:5: not UTF-8 at byte 10; instead: save it as UTF-8" in refused(folder)
    file.unlink()
    packed = folder / "concepts.tsv.gz"
    for damaged in (gzip.compress(whole)[:-12], whole):
        packed.write_bytes(damaged)
        assert re.search(rf"{re.escape(str(packed))}:\d+: cannot be read \(.+\); instead: ", refused(folder))


# any hierarchy


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30))
def test_ancestors_are_what_can_be_reached(size: int, edges: list[tuple[int, int]]) -> None:
    above = {str(i): tuple(str(b) for a, b in edges if a == i < size and b < size) for i in range(size)}
    concepts = {id_: Concept(id_, id_, (), ("T047",), ()) for id_ in above}
    graph = ConceptGraph(Path(), concepts, above, (), NO_TABLE)
    for id_ in above:
        reached: set[str] = set()
        while more := {b for a in (id_, *reached) for b in above[a]} - reached:
            reached |= more
        assert set(graph.ancestors(id_)) == reached - {id_} and len(set(graph.ancestors(id_))) == len(
            graph.ancestors(id_)
        )
        assert all(graph.is_a(id_, one) for one in reached) and graph.is_a(id_, id_)
        assert set(graph.children(id_)) == {a for a, parents in above.items() if id_ in parents}
