"""Reading: every format, and every fault with its place and its remedy."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from domainkit.data.mix import split
from domainkit.data.read import FORMATS, read
from domainkit.types import UserError

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tasks" / "finance" / "data"
SOURCES = ROOT.parent / "shared" / "data"


def _jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _fault(path: Path) -> str:
    """The message; faults must surface on the call itself, before the first example."""
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


def test_jsonl_fields_defaults_and_unknown_keys(tmp_path: Path) -> None:
    full = {"text": "a", "id": 7, "label": "L", "group": "g", "language": "zh", "summary": "s", "extra": [1]}
    path = _jsonl(tmp_path / "news.jsonl", full, {"text": "b", "label": None, "title": 3})
    first, second = read(path, language="en", source="mine")
    assert (first.id, first.label, first.group, first.language, first.summary) == ("7", "L", "g", "zh", "s")
    assert (second.id, second.label, second.group, second.language) == ("news.jsonl:2", "", "", "en")
    assert first.source == second.source == "mine"


def test_blank_lines_bom_and_windows_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "three"}')
    assert [(e.id, e.text) for e in read(path)] == [("a.jsonl:1", "one"), ("a.jsonl:3", "three")]


def test_gzip_and_text(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "银行"}\n')
    (tmp_path / "b.txt").write_text("line one\nline two\n", encoding="utf-8")
    assert [(e.id, e.text) for e in read(tmp_path / "a.jsonl.gz")] == [("a.jsonl.gz:1", "银行")]
    assert [(e.id, e.text) for e in read(tmp_path / "b.txt")] == [("b.txt:1", "line one\nline two\n")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["x", "y"], "label": ["1", None], "other": [1, 2]}), path)
    assert [(e.text, e.label, e.id) for e in read(path)] == [("x", "1", "a.parquet:1"), ("y", "", "a.parquet:2")]
    parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
    assert f"{path}:2" in _fault(path)
    parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    assert "no column 'text'" in _fault(path) and "body" in _fault(path)
    path.write_bytes(b"not parquet at all")
    assert "not a whole Parquet file" in _fault(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    assert "pip install 'domainkit[parquet]'" in _fault(path)


def test_folder_is_sorted_and_ids_keep_the_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    _jsonl(tmp_path / "sub" / "a.jsonl", {"text": "inner"})
    _jsonl(tmp_path / "b.jsonl", {"text": "outer"})
    (tmp_path / "skip.pdf").write_bytes(b"%PDF")
    assert [e.id for e in read(tmp_path)] == ["b.jsonl:1", "sub/a.jsonl:1"]


def test_folder_without_data_and_missing_path(tmp_path: Path) -> None:
    assert "no file that can be read" in _fault(tmp_path)
    missing = tmp_path / "gone.jsonl"
    assert f"{missing}: no such file" in _fault(missing)


def test_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    assert "'.docx'" in _fault(tmp_path / "a.docx") and ".parquet" in _fault(tmp_path / "a.docx")


PUBTATOR = "1|t|Title.\n1|a|Text.\n"


@pytest.mark.parametrize(
    ("name", "content", "format", "text"),
    [
        ("a.PubTator", PUBTATOR, "", "Title. Text."),
        ("a.PubTator.txt", PUBTATOR, "", "Title. Text."),
        ("a.txt", PUBTATOR, "", "Title. Text."),
        ("a.txt", "\ufeff\n\n" + PUBTATOR, "", "Title. Text."),
        ("a.txt", PUBTATOR, "text", PUBTATOR),
        ("a.dat", PUBTATOR, "pubtator", "Title. Text."),
        ("a.txt", "See 1|t|Title.", "", "See 1|t|Title."),
        ("a.iob", "a\tB-X\n", "", "a"),
        ("a.tsv", "\na NN B-X\n", "", "a"),
        ("a.tsv", "-DOCSTART-\tO\n\na\tO", "", "a"),
        ("a.CSV", "dialogue,note\nd,n\n", "", "d"),
        ("a.log", '{"text": "t"}\n', "jsonl", "t"),
    ],
)
def test_formats_go_by_name_or_beginning_unless_named(
    tmp_path: Path, name: str, content: str, format: str, text: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [e.text for e in read(tmp_path / name, format=format)] == [text]
    if name != "a.dat" and name != "a.log":
        assert [e.text for e in read(tmp_path, format=format)] == [text]


def test_a_table_that_is_no_conll(tmp_path: Path) -> None:
    """Glossaries are .tsv files too: named by mistake they are refused, in a folder of documents passed over."""
    (tmp_path / "a.tsv").write_text("term\tgloss\nrate\tinterest\n")
    message = _fault(tmp_path / "a.tsv")
    assert "unknown file type '.tsv'" in message and "CoNLL columns, a token and its tag" in message
    _jsonl(tmp_path / "b.jsonl", {"text": "x"})
    assert [e.id for e in read(tmp_path)] == ["b.jsonl:1"]
    with pytest.raises(UserError, match="unknown tag 'gloss'"):
        read(tmp_path / "a.tsv", format="conll")


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown format 'bioc'; instead: one of \['jsonl', 'text', .*'pubtator'"):
        read(_jsonl(tmp_path / "a.jsonl", {"text": "x"}), format="bioc")


def test_a_folder_of_one_format_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "a.pubtator").write_text(PUBTATOR)
    _jsonl(tmp_path / "b.jsonl", {"text": "x"})
    assert [e.id for e in read(tmp_path, format="pubtator")] == ["1"]
    assert [e.id for e in read(tmp_path)] == ["1", "b.jsonl:1"]


def test_every_format_is_reached_by_its_suffixes(tmp_path: Path) -> None:
    for format, suffixes in FORMATS.items():
        for suffix in suffixes:
            (tmp_path / f"a{suffix}").write_bytes(b"")
            with pytest.raises(UserError, match=r"empty|damaged|beside"):
                read(tmp_path / f"a{suffix}", format=format)
            (tmp_path / f"a{suffix}").unlink()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b"")
    assert "the file is empty" in _fault(tmp_path / name)


def test_file_without_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text(" \n ", encoding="utf-8")
    assert "no document" in _fault(tmp_path / "a.jsonl")
    assert "no document" in _fault(tmp_path / "a.txt")


def test_broken_line_7_of_10(tmp_path: Path) -> None:
    lines = ['{"text": "fine"}'] * 10
    lines[6] = '{"text": "cut off'
    path = tmp_path / "FILE.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    message = _fault(path)
    assert "FILE.jsonl:7" in message and "10 lines read" in message and "one JSON object per line" in message


def test_all_faults_are_collected_and_the_rest_counted(tmp_path: Path) -> None:
    bad = [{"body": "x"}, {"text": 3}, {"text": None}, ["list"], {"text": "ok", "label": ["a"]}, {"text": "\ud800"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*bad, {"text": "good"}, 5]), encoding="utf-8")
    message = _fault(path)
    assert message.count(f"{path}:") == 6  # the heading and five faults
    assert "7 faults" in message and "and 2 more" in message
    assert "found ['body']" in message and "'text' is null" in message and "an array, not an object" in message


def test_half_a_surrogate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ab\\ud800"}\n', encoding="utf-8")
    assert "surrogate pair at character 2" in _fault(path)


@pytest.mark.parametrize(
    ("encoding", "text", "guess"),
    [
        ("gb18030", "中国银行业监督管理机构", "gb18030"),
        ("utf-16", "中国银行业监督管理机构", "utf-16"),
        ("latin-1", "Société générale à Genève, crédit déjà accordé", "latin1"),
    ],
)
def test_wrong_encoding_says_where_and_how_to_convert(tmp_path: Path, encoding: str, text: str, guess: str) -> None:
    start = b"" if encoding == "utf-16" else b'{"text": "fine"}\n'
    row = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + row.encode(encoding))
    message = _fault(path)
    assert f"iconv -f {guess} -t utf-8" in message
    if start:
        offset = len(start) + len('{"text": "') + text.index(next(c for c in text if ord(c) > 127))
        assert f"{path}:2" in message and f"byte {offset};" in message


def test_wrong_encoding_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"ascii\n" + "商业银行法".encode("gbk"))
    assert f"{path}:2" in _fault(path) and "iconv -f gb18030" in _fault(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "x"}\n' * 1000)
    for data in (whole[: len(whole) // 2], b"plain text"):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        assert "damaged or cut off" in _fault(tmp_path / "a.jsonl.gz")


def test_one_bad_file_of_a_folder_stops_the_whole(tmp_path: Path) -> None:
    _jsonl(tmp_path / "a.jsonl", {"text": "good"})
    _jsonl(tmp_path / "b.jsonl", {"no": 1})
    assert "b.jsonl:1" in _fault(tmp_path)


def test_shipped_samples_are_what_their_readme_says() -> None:
    files = sorted(SAMPLES.glob("*.jsonl"))
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\S+\.jsonl) \| ([\d,]+) \|", readme, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in listed} == {
        file.name: sum(1 for _ in read(file)) for file in files
    }
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in readme
    assert sum(file.stat().st_size for file in files) < 5_500_000


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.jsonl")), ids=lambda path: path.name)
def test_shipped_samples_split_evenly(path: Path) -> None:
    """Choosing samples by the very hash that splits them once put a whole file on the test side."""
    train, test = split(read(path), test=0.2)
    assert 0.08 < len(test) / (len(train) + len(test)) < 0.35


def test_shipped_regulation_paragraphs_can_be_held_out() -> None:
    groups: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, int] = defaultdict(int)
    for example in read(SAMPLES / "cfpb.jsonl"):
        groups[example.group].add(example.label)
        labels[example.label] += 1
        assert len(example.text) >= 60
    assert all(len(found) == 1 for found in groups.values())
    assert len(labels) >= 10 and min(labels.values()) >= 80


@pytest.mark.skipif(not SOURCES.is_dir(), reason="the raw sources are not beside this checkout")
def test_samples_are_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("finance_samples", ROOT / "scripts" / "finance_samples.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(SOURCES, tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (SAMPLES / file.name).read_bytes(), file.name
