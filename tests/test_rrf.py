"""A small release in NLM's Rich Release Format, written here, compiled into a graph."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from domainkit import rrf
from domainkit.graph import ConceptGraph, Link, check
from domainkit.ontology import medical
from domainkit.types import UserError

DISEASE, INFARCT, ASPIRIN, HEART, UNTYPED, FOREIGN = (f"C000000{i}" for i in range(1, 7))


def atom(cui: str, text: str, **cells: str) -> str:
    """A row of MRCONSO: preferred, English, of a made-up source, but for `cells`."""
    row = dict.fromkeys(rrf.COLUMNS[rrf.MRCONSO].split(), "") | {
        "CUI": cui, "LAT": "ENG", "TS": "P", "STT": "PF", "ISPREF": "Y", "SAB": "SRC", "CODE": "X1", "STR": text,
        "SUPPRESS": "N",
    }  # fmt: skip
    return "|".join((row | cells).values()) + "|"


def sty(cui: str, tui: str) -> str:
    return f"{cui}|{tui}|A1|whatever|AT1|256|"


def rel(first: str, rel_: str, second: str, rela: str = "", **cells: str) -> str:
    """A row of MRREL."""
    row = dict.fromkeys(rrf.COLUMNS[rrf.MRREL].split(), "") | {
        "CUI1": first, "REL": rel_, "CUI2": second, "RELA": rela, "SAB": "SRC", "SUPPRESS": "N",
    }  # fmt: skip
    return "|".join((row | cells).values()) + "|"


CONSO = (
    atom(DISEASE, "heart trouble", TS="S"),
    atom(DISEASE, "Heart Disease"),
    atom(DISEASE, "heart-disease", TS="S"),
    atom(DISEASE, "Herzkrankheit", LAT="GER"),
    atom(DISEASE, "old heart", TS="S", SUPPRESS="O"),
    atom(INFARCT, "Myocardial Infarction", SAB="MSH", CODE="D009203"),
    atom(INFARCT, "heart attack", TS="S", SAB="OMIM", CODE="608446"),
    atom(ASPIRIN, "aspirin"),
    atom(HEART, "Heart"),
    atom(UNTYPED, "no type"),
    atom(FOREIGN, "Herz", LAT="GER"),
)
STY = (sty(DISEASE, "T047"), sty(INFARCT, "T047"), sty(ASPIRIN, "T121"), sty(ASPIRIN, "T109"), sty(HEART, "T023"),
       sty(FOREIGN, "T023"), sty(UNTYPED, "T998"))  # fmt: skip
REL = (
    rel(DISEASE, "CHD", INFARCT, "isa"),
    rel(DISEASE, "RO", HEART, "location_of"),
    rel(DISEASE, "RO", HEART, "location_of", AUI1="A2"),  # another atom: the same relation
    rel(INFARCT, "PAR", DISEASE, "inverse_isa"),
    rel(INFARCT, "PAR", HEART, "part_of"),  # a hierarchy, but of parts
    rel(INFARCT, "RO", ASPIRIN, "may_treat"),
    rel(INFARCT, "RO", ASPIRIN, "may_prevent", SUPPRESS="O"),
    rel(INFARCT, "SIB", DISEASE),
    rel(INFARCT, "RO", FOREIGN, "location_of"),
    rel(INFARCT, "RQ", INFARCT, "mapped_to"),
)


def write_release(
    folder: Path, conso: tuple[str, ...] = CONSO, sty_: tuple[str, ...] = STY, rel_: tuple[str, ...] = REL
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((rrf.MRCONSO, conso), (rrf.MRSTY, sty_), (rrf.MRREL, rel_)):
        (folder / name).write_bytes("".join(f"{row}\n" for row in rows).encode())
    return folder


def compiled(folder: Path, out: Path) -> ConceptGraph:
    rrf.compile_release(folder, medical.type_table(), out)
    return ConceptGraph.load(str(out))


@pytest.fixture
def graph(tmp_path: Path) -> ConceptGraph:
    return compiled(write_release(tmp_path / "META"), tmp_path / "out")


def test_columns_are_those_of_the_reference_manual() -> None:
    numbers = {name: rrf.COLUMNS[name].split() for name in rrf.COLUMNS}
    assert [len(numbers[name]) for name in (rrf.MRCONSO, rrf.MRSTY, rrf.MRREL)] == [18, 6, 16]
    assert [numbers[rrf.MRCONSO].index(c) for c in ("CUI", "LAT", "SAB", "CODE", "STR", "SUPPRESS")] == [
        0, 1, 11, 13, 14, 16,
    ]  # fmt: skip
    assert [numbers[rrf.MRREL].index(c) for c in ("CUI1", "REL", "CUI2", "RELA", "SAB", "SUPPRESS")] == [
        0, 3, 4, 7, 10, 14,
    ]  # fmt: skip


def test_concepts_that_have_an_english_name_and_a_type(graph: ConceptGraph) -> None:
    assert list(graph.concepts) == [f"UMLS:{cui}" for cui in (DISEASE, INFARCT, ASPIRIN, HEART)]
    one = graph.concept(f"UMLS:{DISEASE}")
    assert (one.name, one.synonyms) == ("Heart Disease", ("heart trouble",))  # heart-disease is no other name
    assert graph.find("Herzkrankheit") == graph.find("old heart") == ()
    assert graph.types(f"UMLS:{ASPIRIN}") == ("T109", "T121")
    assert graph.find_xref("MESH:D009203") == graph.find_xref("OMIM:608446") == (f"UMLS:{INFARCT}",)


def test_par_and_chd_are_is_a(graph: ConceptGraph) -> None:
    assert graph.parents(f"UMLS:{INFARCT}") == (f"UMLS:{DISEASE}",)
    assert sum(map(len, graph.above.values())) == 1


@pytest.mark.parametrize("row", [rel(DISEASE, "CHD", INFARCT), rel(INFARCT, "PAR", DISEASE)])
def test_one_direction_is_enough(tmp_path: Path, row: str) -> None:
    graph = compiled(write_release(tmp_path / "META", rel_=(row,)), tmp_path / "out")
    assert graph.parents(f"UMLS:{INFARCT}") == (f"UMLS:{DISEASE}",) and graph.parents(f"UMLS:{DISEASE}") == ()


def test_rela_goes_from_the_second_concept_to_the_first(graph: ConceptGraph) -> None:
    assert set(graph.links) == {
        Link(f"UMLS:{HEART}", "location_of", f"UMLS:{DISEASE}", "SRC"),
        Link(f"UMLS:{HEART}", "part_of", f"UMLS:{INFARCT}", "SRC"),
        Link(f"UMLS:{ASPIRIN}", "may_treat", f"UMLS:{INFARCT}", "SRC"),
    }
    assert len(graph.links) == 3


def test_the_type_table_learns_the_relations(graph: ConceptGraph) -> None:
    assert graph.allows("Chemical", "may_treat", "Disease") and not graph.allows("Disease", "may_treat", "Chemical")
    assert graph.allows("Anatomy", "location_of", "Disease") and graph.allows("Chemical", "causes", "Disease")
    learnt = [one for one in graph.table.signatures if one.source == "umls"]
    assert {one.relation for one in learnt} == {"location_of", "part_of", "may_treat"}
    assert [str(fault) for fault in check(graph)] == []


def test_cycles_are_cut(tmp_path: Path) -> None:
    rows = (
        rel(DISEASE, "PAR", INFARCT), rel(INFARCT, "PAR", HEART), rel(HEART, "PAR", DISEASE),
        rel(ASPIRIN, "PAR", DISEASE),
    )  # fmt: skip
    folder = write_release(tmp_path / "META", rel_=rows)
    dropped = rrf.compile_release(folder, medical.type_table(), tmp_path / "out")
    assert dropped == [(f"UMLS:{HEART}", f"UMLS:{DISEASE}")]
    graph = ConceptGraph.load(str(tmp_path / "out"))
    assert graph.ancestors(f"UMLS:{ASPIRIN}") == tuple(f"UMLS:{cui}" for cui in (DISEASE, INFARCT, HEART))


def test_any_hierarchy_becomes_acyclic(tmp_path: Path) -> None:
    draw, cuis = random.Random(3), [f"C{i:07}" for i in range(200)]
    rows = tuple(rel(draw.choice(cuis), draw.choice(("PAR", "CHD")), draw.choice(cuis)) for _ in range(600))
    folder = write_release(
        tmp_path / "META", tuple(atom(c, f"name {c}") for c in cuis), tuple(sty(c, "T047") for c in cuis), rows
    )
    dropped = rrf.compile_release(folder, medical.type_table(), tmp_path / "out")
    graph = ConceptGraph.load(str(tmp_path / "out"))  # would refuse a cycle
    kept = {(child, parent) for child, parents in graph.above.items() for parent in parents}
    cells = [row.split("|") for row in rows]
    every = {(c[0], c[4]) if c[3] == "PAR" else (c[4], c[0]) for c in cells if c[0] != c[4]}
    assert dropped and kept.isdisjoint(dropped)
    assert kept | set(dropped) == {(f"UMLS:{child}", f"UMLS:{parent}") for child, parent in every}


def test_one_name_for_two_concepts(tmp_path: Path) -> None:
    rows = (atom(DISEASE, "Cold"), atom(INFARCT, "cold"))
    graph = compiled(write_release(tmp_path / "META", rows, rel_=()), tmp_path / "out")
    assert [one.name for one in graph.concepts.values()] == ["Cold", f"cold ({INFARCT})"]
    assert graph.find("cold") == (f"UMLS:{DISEASE}", f"UMLS:{INFARCT}")


def test_the_same_release_gives_the_same_bytes(tmp_path: Path) -> None:
    for out in ("a", "b"):
        compiled(write_release(tmp_path / "META"), tmp_path / out)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_folder_may_be_the_one_above(tmp_path: Path) -> None:
    write_release(tmp_path / "2025AA" / "META")
    assert rrf.is_release(tmp_path / "2025AA") and not rrf.is_release(tmp_path)
    assert len(compiled(tmp_path / "2025AA", tmp_path / "out").concepts) == 4


BAD = {
    "short": (rrf.MRSTY, (*STY, "C0000001|T047|"), 8, "2 columns, not 6; instead: CUI|TUI|STN|STY|ATUI|CVF|"),
    "not a CUI": (rrf.MRSTY, (sty("D000001", "T047"),), 1, "bad CUI 'D000001'; instead: C and seven digits"),
    "long": (rrf.MRCONSO, (CONSO[0], CONSO[1] + "x|"), 2, "19 columns, not 18"),
    "second CUI": (rrf.MRREL, (rel(DISEASE, "PAR", "C1"),), 1, "bad CUI 'C1'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_names_its_line(tmp_path: Path, name: str) -> None:
    file, rows, line, said = BAD[name]
    folder = write_release(tmp_path / "META")
    (folder / file).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        compiled(folder, tmp_path / "out")
    assert str(caught.value).startswith(f"{folder / file}:{line}: {said}")


def test_rows_that_do_not_stand_together(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "META", (*CONSO, atom(DISEASE, "again")))
    with pytest.raises(UserError, match=rf"the rows of {DISEASE} do not stand together; instead: LC_ALL=C sort"):
        compiled(folder, tmp_path / "out")


def test_a_file_that_is_missing_or_damaged(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "META")
    (folder / rrf.MRCONSO).write_bytes(CONSO[0].encode() + b"\n" + "é".encode("latin1") + b"\n")
    with pytest.raises(UserError, match=r"MRCONSO.RRF.*: not UTF-8; instead: the release as NLM distributes it"):
        compiled(folder, tmp_path / "out")
    (folder / rrf.MRREL).unlink()
    with pytest.raises(UserError, match=r"no MRREL.RRF; instead: the META folder of a UMLS release"):
        compiled(folder, tmp_path / "out")
