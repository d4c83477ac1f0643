"""`domainkit graph` through the real command line: what it prints and writes, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from domainkit.graph import ConceptGraph
from tests.test_graph import CONCEPTS, LINKS, write_graph
from tests.test_recipes import Ended, domainkit
from tests.test_rrf import write_release

MANY = tuple(f"D{i}\tname {i}\t\tT047\tD9{i}\t" for i in range(10, 30))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a graph and a UMLS release; the working directory. The cache is in it."""
    write_graph(tmp_path / "mine")
    write_release(tmp_path / "2025AA" / "META")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def refused(ended: Ended, *needed: str) -> None:
    assert ended.code == 1 and not ended.out
    assert ended.err.startswith("error: ") and "Traceback" not in ended.err
    for text in needed:
        assert text in ended.err


def test_graphs_are_imported_only_when_needed() -> None:
    code = "import sys, domainkit.cli; print([m for m in sys.modules if m.endswith(('.graph', '.rrf', 'numpy'))])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


# check


def test_check(desk: Path) -> None:
    ended = domainkit("graph", "check", "mine")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "mine is sound: 5 concepts, 11 names, 2 relations",
        "to know: mine/concepts.tsv: 1 aliases belong to several concepts, 'mi' to D2 and MONDO:4",
    ]


def test_check_of_the_shipped_graph(desk: Path) -> None:
    ended = domainkit("graph", "check")
    assert (ended.code, ended.err) == (0, "") and "medical is sound: 1" in ended.out


def test_check_lists_every_fault(desk: Path) -> None:
    write_graph(desk / "bad", MANY, ("D10\tcauses\tD11\tme",))
    ended = domainkit("graph", "check", "bad")
    refused(ended, "bad: 21 faults", "bad/concepts.tsv:2: D10 is a kind of 'D910'", "bad/concepts.tsv:21: D29 ")
    refused(ended, "bad/links.tsv:2: D10 causes D11: relations.tsv has no row for T047 → T047")
    assert len(ended.err.splitlines()) == 22
    refused(domainkit("graph", "show", "D10", "--graph", "bad"), "bad: 21 faults", "and 16 more")


def test_check_of_a_cycle(desk: Path) -> None:
    write_graph(desk / "bad", ("D1\ta\t\tT047\tD2\t", "D2\tb\t\tT047\tD1\t"), ())
    refused(domainkit("graph", "check", "bad"), "bad/concepts.tsv:3: is-a goes in a circle: D1 → D2 → D1; instead: ")


def test_an_unknown_graph(desk: Path) -> None:
    refused(domainkit("graph", "check", "medicla"), "unknown graph 'medicla'; instead: 'medical'")
    refused(domainkit("graph", "show", "x", "--graph", "nowhere"), "unknown graph 'nowhere'")


# show


def test_show_by_id_name_or_cross_reference(desk: Path) -> None:
    by_id = domainkit("graph", "show", "D2", "--graph", "mine")
    assert (by_id.code, by_id.err) == (0, "")
    assert by_id.out.splitlines() == [
        "D2  Myocardial Infarction",
        "  types: T047 Disease or Syndrome",
        "  entity types: Disease",
        "  synonyms: Heart Attack; MI",
        "  is a: D1  Heart Diseases",
        "  children: 1",
        "  ← causes: D3  Aspirin  (me)",
        "  elsewhere: UMLS:C2",
    ]
    for other in ("heart attack", "MESH:D2"):
        assert domainkit("graph", "show", other, "--graph", "mine").out == by_id.out
    assert "  causes: D2  Myocardial Infarction  (me)" in domainkit("graph", "show", "D3", "--graph", "mine").out


def test_show_all_that_share_a_name(desk: Path) -> None:
    for shared in ("mi", "UMLS:C2"):
        first, second = domainkit("graph", "show", shared, "--graph", "mine").out.split("\n\n")
        assert first.startswith("D2  ") and second.startswith("MONDO:4  Sjögren syndrome\n")


def test_show_looks_into_the_shipped_graph(desk: Path) -> None:
    ended = domainkit("graph", "show", "aspirin")
    assert ended.out.startswith("D001241  Aspirin\n  types: T109 Organic Chemical; T121 Pharmacologic Substance\n")
    refused(domainkit("graph", "show", "asprin"), "medical: no concept 'asprin'; instead: an id (D001241), a whole")


# link


def test_link_shows_candidates_the_likeliest_first(desk: Path) -> None:
    ended = domainkit("graph", "link", "heart attacks", "--graph", "mine")
    assert (ended.code, ended.err) == (0, "")
    best, *others = [line.split(maxsplit=3) for line in ended.out.splitlines()]
    assert (best[0], *best[2:]) == ("D2", "normalised", "Myocardial Infarction")
    assert others and all(float(one[1]) < float(best[1]) <= 1 for one in others)


def test_link_with_a_label_and_a_text(desk: Path) -> None:
    line = ("graph", "link", "HD", "--graph", "mine", "--label", "Disease")
    text = "Cardiac diseases were told apart. Heart diseases (HD) are many."
    assert domainkit(*line).out == "no concept fits 'HD'\n"
    assert domainkit(*line, "--text", text).out.startswith("D1 ")
    assert "abbreviation  Heart Diseases" in domainkit(*line, "--text", text).out


def test_link_of_nothing_and_of_an_unknown_label(desk: Path) -> None:
    for mention in ("zzz qqq", "", "😀"):
        ended = domainkit("graph", "link", mention, "--graph", "mine")
        assert (ended.code, ended.err, ended.out) == (0, "", f"no concept fits {mention!r}\n")
    refused(domainkit("graph", "link", "x", "--graph", "mine", "--label", "Illness"), "unknown entity type 'Illness'; "
            "instead: one of ['Disease', 'Chemical', 'Gene']")  # fmt: skip


# build


def test_build_a_release(desk: Path) -> None:
    ended = domainkit("graph", "build", "2025AA")
    built = desk / "cache" / "ontologies" / "umls"
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"graph: {built}, 0 is-a edges left out, as they close a cycle",
        "check it: domainkit graph check umls",
    ]
    assert [folder.name for folder in built.parent.iterdir()] == ["umls"]
    assert domainkit("graph", "check", "umls").out.startswith(f"{built} is sound: 4 concepts")
    assert "UMLS:C0000002  Myocardial" in domainkit("graph", "show", "MESH:D009203", "--graph", "umls").out


def test_build_replaces_only_when_told(desk: Path) -> None:
    line = ("graph", "build", "2025AA", "--out", "mine")
    refused(domainkit(*line), "mine: a graph is here already; instead: another --out, or --overwrite to replace it")
    assert ConceptGraph.load("mine").concept("D3").name == "Aspirin"
    assert domainkit(*line, "--overwrite").code == 0
    assert "UMLS:C0000003" in ConceptGraph.load("mine").concepts


def test_a_failed_build_leaves_what_was_there(desk: Path) -> None:
    with (desk / "2025AA" / "META" / "MRREL.RRF").open("a") as file:
        file.write("C0000001|half a row\n")
    ended = domainkit("graph", "build", "2025AA", "--out", "mine", "--overwrite")
    refused(ended, "MRREL.RRF:11: 1 columns, not 16")
    assert sorted(path.name for path in desk.iterdir()) == ["2025AA", "mine"]
    assert len(ConceptGraph.load("mine").concepts) == len(CONCEPTS) and len(ConceptGraph.load("mine").links) == len(
        LINKS
    )


def test_build_of_nothing(desk: Path) -> None:
    refused(domainkit("graph", "build", "mine"), "mine: no mesh/mesh_id_label_mappings.tsv.gz and no ", "instead: ")
    assert not (desk / "cache" / "ontologies" / "medical-full").exists()


def test_build_from_the_sources(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler itself is tested in tests/ontology; here, that it is the one called."""
    from domainkit.ontology import medical
    from domainkit.ontology.draft import Draft

    def compile_full(sources: Path, out: Path) -> Draft:
        write_graph(out)
        return Draft(dropped=[("D1", "D2")])

    monkeypatch.setattr(medical, "compile_full", compile_full)
    ended = domainkit("graph", "build", "sources")
    built = desk / "cache" / "ontologies" / "medical-full"
    assert ended.out.splitlines() == [
        f"graph: {built}, 1 is-a edges left out, as they close a cycle",
        "check it: domainkit graph check medical-full",
    ]
