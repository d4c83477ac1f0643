"""BRAT standoff: pairs of files, discontinuous mentions, links, and each way a pair can be broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.data.overlaps import mentions, overlaps
from domainkit.data.read import read
from domainkit.data.row import Allowed
from domainkit.types import Relation, Span
from tests.data.annotated import fault, spans_in, texts

TEXT = "severe liver and\nrenal failure by aspirin"
DRUG = f"T1\tChemical {len(TEXT) - 7} {len(TEXT)}\taspirin"
LIVER = "T2\tDisease 0 12;23 30\tsevere liver failure"
RENAL = "T3\tDisease 17 30\trenal failure"


def pair(folder: Path, *lines: str, text: str = TEXT, name: str = "a") -> Path:
    (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    (folder / f"{name}.ann").write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")
    return folder / f"{name}.txt"


def test_mentions_links_and_relations(tmp_path: Path) -> None:
    path = pair(tmp_path, "R1\tInduces Arg1:T1 Arg2:T3\t", "R2\tInduces Arg1:T1 Arg2:T2", RENAL, DRUG, LIVER,
                "N1\tReference T1 MeSH:D001241\taspirin", "N2\tReference T2 MeSH:D1\tx", "N3\tReference T2 MeSH:D2\tx",
                "N4\tReference T2 MeSH:D1\tagain")  # fmt: skip
    (one,) = read(path)
    assert one.spans == (
        Span(0, 30, "Disease", "MeSH:D1,MeSH:D2", ((0, 12), (23, 30))),
        Span(17, 30, "Disease"),
        Span(34, 41, "Chemical", "MeSH:D001241"),
    )
    assert one.relations == (
        Relation("MeSH:D001241", "Induces", "17:30"),
        Relation("MeSH:D001241", "Induces", "MeSH:D1"),
        Relation("MeSH:D001241", "Induces", "MeSH:D2"),
    )
    assert mentions(one)["17:30"] == one.spans[1:2]
    assert (one.text, one.id) == (TEXT, "a.txt:1")
    found = overlaps([one])
    assert (found.spans, found.nested, found.discontinuous, found.composite, found.unlinked) == (3, 1, 1, 1, 1)


def test_relations_of_many_mentions_are_one_of_the_document(tmp_path: Path) -> None:
    lines = ("T1\tC 0 1\ta", "T2\tC 2 3\ta", "T3\tC 4 5\tb", *(f"N{i}\tReference T{i} X:1\ta" for i in (1, 2)))
    (one,) = read(pair(tmp_path, *lines, "R1\tr Arg1:T1 Arg2:T3", "R2\tr Arg1:T2 Arg2:T3", text="a a b"))
    assert one.relations == (Relation("X:1", "r", "4:5"),)
    message = fault(tmp_path / "a.txt", allowed=Allowed(relations={"s"}))
    assert f"{tmp_path}/a.ann:6: unknown relation 'r'" in message and "faults" not in message  # where it is said first


def test_pieces_at_a_line_end_are_no_discontinuous_mention(tmp_path: Path) -> None:
    (one,) = read(pair(tmp_path, "T1\tDisease 7 16;17 30\tliver and renal failure"))
    assert one.spans[0].parts == ((7, 16), (17, 30)) and overlaps([one]).discontinuous == 0


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_mention_over_a_line_end_is_told_with_a_space(tmp_path: Path, ends: str) -> None:
    (one,) = read(pair(tmp_path, f"T1\tX 0 {3 + len(ends)}\ta bc", text=f"a{ends}bc"))
    assert one.text[one.spans[0].start : one.spans[0].end] == f"a{ends}bc"


def test_what_has_no_place_is_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pair(tmp_path, DRUG, "A1\tNegation T1", "M1\tSpeculation T1", "E1\tGive:T1 Arg:T1", "*\tEquiv T1 T1",
                "#1\tAnnotatorNotes T1\tsure?")  # fmt: skip
    (one,) = read(path)
    assert len(one.spans) == 1
    assert (
        capsys.readouterr().err == f"{path}: read without attributes (2), events (1), equivalences (1), comments (1)\n"
    )


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    pair(tmp_path, DRUG)
    pair(tmp_path / "sub", name="b")
    assert [(e.id, len(e.spans)) for e in read(tmp_path)] == [("a.txt:1", 1), ("sub/b.txt:1", 0)]
    assert [e.id for e in read(tmp_path / "a.ann")] == ["a.txt:1"]
    assert [len(e.spans) for e in read(tmp_path, format="text")] == [0, 0]


def test_a_text_among_pairs_lacks_its_annotation(tmp_path: Path) -> None:
    pair(tmp_path, DRUG)
    (tmp_path / "b.txt").write_text("alone")
    (tmp_path / "c.ann").write_text("")
    message = fault(tmp_path)
    assert f"{tmp_path}/b.txt: no b.ann beside it; instead: an empty file if nothing is annotated" in message
    assert f"{tmp_path}/c.ann: no c.txt beside it; instead: the text" in message
    assert [e.text for e in read(tmp_path / "b.txt")] == ["alone"]  # named by itself it is plain text
    assert "no b.ann" in fault(tmp_path / "b.txt", format="brat")


@given(st.data(), texts("\n"))
def test_offsets_are_right_in_every_script(tmp_path_factory: pytest.TempPathFactory, data: Any, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    spans, lines = data.draw(spans_in(text)), []
    for i, s in enumerate(spans):
        lines.append(f"T{i}\t{s.label} {s.start} {s.end}\t" + text[s.start : s.end].replace("\n", " "))
        lines += [f"N{i}\tReference T{i} X:{concept}\tx" for concept in s.concepts]
    (one,) = read(pair(folder, *lines, text=text, name="every"))
    assert one.text == text
    assert [(s.start, s.end, s.label) for s in one.spans] == [(s.start, s.end, s.label) for s in spans]
    assert [s.concepts for s in one.spans] == [tuple(f"X:{c}" for c in s.concepts) for s in spans]


BAD = {
    "outside": ("T9\tX 39 50\tspirin", "span 39-50 lies outside the text of 41 characters"),
    "mismatch": ("T9\tX 7 12\tLiver", "the text at 7-12 is 'liver', not 'Liver'"),
    "pieces": ("T9\tX 7 12;23 30\tliver  failure", "the text at 7-30 is 'liver failure', not 'liver  failure'"),
    "order": ("T9\tX 23 30;7 12\tfailure liver", "span 23-12 is empty or runs backwards"),
    "overlapping pieces": ("T9\tX 7 12;10 16\tliver er and", "do not make up the span 7-16"),
    "cut mention": ("T9\tX 7 12", "the T line is cut off or has another form"),
    "cut offsets": ("T9\tX 7\tliver", "the T line is cut off"),
    "cut name": ("T9", "the T line is cut off"),
    "cut relation": ("R1\tr Arg1:T1", "the R line is cut off"),
    "cut link": ("N1\tReference T1", "the N line is cut off"),
    "argument": ("R1\tr Arg1:T1 Arg2:T9", "relation argument T9 is annotated nowhere"),
    "link": ("N1\tReference T9 MeSH:D1\tx", "T9 is linked to MeSH:D1 but annotated nowhere"),
    "id": ("T1\tX 7 12\tliver", "T1 is given twice, first at line 1"),
    "twice": (DRUG.replace("T1", "T9"), "span 34-41 Chemical is annotated twice, first at"),
    "kind": ("X1\tx", "a line of an unknown kind, 'X1'"),
    "huge": (f"T9\tX 0 {'9' * 5000}\tsevere", "the T line is cut off or has another form"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines(tmp_path: Path, name: str) -> None:
    line, what = BAD[name]
    message = fault(pair(tmp_path, DRUG, line))
    assert what in message and f"{tmp_path}/a.ann:2: " in message and "instead: " in message
    assert "faults" not in message


def test_bad_texts(tmp_path: Path) -> None:
    assert "the document is empty" in fault(pair(tmp_path, text=" \n"))
    path = pair(tmp_path, DRUG)
    path.write_bytes("Société générale à côté".encode("latin-1"))
    assert f"{path}:1: not UTF-8" in fault(path)
    pair(tmp_path)
    (tmp_path / "a.ann").write_bytes(DRUG.encode() + b"\nT2\tMaladie g\xe9n\xe9rale 0 6\tsevere\n")
    assert f"{tmp_path}/a.ann:2: not UTF-8" in fault(path)


def test_unknown_labels(tmp_path: Path) -> None:
    path = pair(tmp_path, DRUG, RENAL)
    assert f"{tmp_path}/a.ann:2: unknown label 'Disease'" in fault(path, allowed=Allowed({"Chemical"}))
