"""CSV of dialogues and notes: columns, line ends, quotes, and each way a table can be broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from domainkit.data.read import read
from tests.data.annotated import fault

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "data" / "medical"
HEAD = "ID,section_header,section_text,dialogue\n"


def table(folder: Path, text: str) -> Path:
    (folder / "a.csv").write_text(text, encoding="utf-8", newline="")
    return folder / "a.csv"


def test_columns_and_line_ends(tmp_path: Path) -> None:
    text = HEAD + '3,CC,"He said ""ow"".","D: 😀?\r\nP: Ow, yes. "\r\n\r\n4,ROS,n,d\r\n'
    first, second = read(table(tmp_path, text))
    assert (first.text, first.summary, first.label) == ("D: 😀?\nP: Ow, yes. ", 'He said "ow".', "CC")
    assert (first.id, second.id, second.text) == ("a:3", "a:4", "d")


def test_notes_of_aci_bench(tmp_path: Path) -> None:
    (one,) = read(table(tmp_path, "\ufeffdataset,encounter_id,dialogue,note\nv,D2N1,hi .,CHIEF\n"), language="en")
    assert (one.text, one.summary, one.label, one.id, one.language) == ("hi .", "CHIEF", "", "a:D2N1", "en")


def test_a_hundred_pages_fit_in_a_cell(tmp_path: Path) -> None:
    (one,) = read(table(tmp_path, HEAD + f"1,CC,n,{'word ' * 60_000}\n"))
    assert len(one.text) == 300_000


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("1,CC,note", "3 cells, the header has 4"),
        ("1,CC,note,d,more", "5 cells, the header has 4"),
        ("1,CC,,d", "'section_text' is empty"),
        ("1,CC,n, ", "'dialogue' is empty"),
        ('1,CC,n,"cut off', "not valid CSV: unexpected end of data"),
        ('1,CC,n,"a"b', "not valid CSV"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, what: str) -> None:
    path = table(tmp_path, HEAD + '0,CC,n,"two\nlines"\n' + line)
    message = fault(path)
    assert what in message and f"{path}:4: " in message and "instead: " in message and "faults" not in message


def test_bad_files(tmp_path: Path) -> None:
    path = table(tmp_path, "ID,dialog,note\n1,d,n\n")
    assert f"{path}:1: no dialogues with notes, found the columns ['ID', 'dialog', 'note']" in fault(path)
    assert "a column 'dialogue' and one of 'section_text', 'note'" in fault(table(tmp_path, "dialogue,text\nd,n\n"))
    assert "the file is empty" in fault(table(tmp_path, ""))
    assert "the file holds no document" in fault(table(tmp_path, HEAD))
    path.write_bytes(HEAD.encode() + "1,CC,fièvre,général\n".encode("latin-1"))
    assert f"{path}:2: not UTF-8" in fault(path)


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the raw sources are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "documents", "headers"),
    [
        ("mts_dialog/MTS-Dialog-TrainingSet.csv", 1201, 20), ("mts_dialog/MTS-Dialog-ValidationSet.csv", 100, 20),
        ("aci_bench/train.csv", 67, 1), ("aci_bench/valid.csv", 20, 1),
    ],
)  # fmt: skip
def test_the_real_corpora(name: str, documents: int, headers: int) -> None:
    examples = list(read(CORPORA / name))
    assert len(examples) == len({e.id for e in examples}) == documents
    assert len({e.label for e in examples}) == headers
    assert all(e.text and e.summary and "\r" not in e.text + e.summary for e in examples)
