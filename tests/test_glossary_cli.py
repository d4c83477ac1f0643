"""`domainkit glossary` through the real command line: what it prints and writes, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from domainkit import assets, glossary_cli, progress
from domainkit.glossary import Glossary
from domainkit.types import Example
from tests.test_glossary import DUE, LOAN, SHARE, row, write_glossary
from tests.test_recipes import Ended, domainkit, write_rows

DOCUMENTS = [
    {"id": "zh-1", "text": "该客户贷款逾期，转为不良贷款。"},
    {"text": "Delinquency and NPLs rose; A股 fell."},
    {"text": "nothing here"},
]
TERMS = [
    [
        {"start": 5, "end": 7, "form": "逾期", "id": "delinquency", "translation": "delinquency"},
        {"start": 10, "end": 14, "form": "不良贷款", "id": "non-performing-loan", "translation": "non-performing loan"},
    ],
    [
        {"start": 0, "end": 11, "form": "delinquency", "id": "delinquency", "translation": "逾期"},
        {"start": 16, "end": 20, "form": "NPLs", "id": "non-performing-loan", "translation": "不良贷款"},
        {"start": 27, "end": 29, "form": "A股", "id": "a-share", "translation": "A share"},
    ],
    [],
]
INLINE = (
    "该客户贷款逾期 (delinquency)，转为不良贷款 (non-performing loan)。\n"
    "Delinquency (逾期) and NPLs (不良贷款) rose; A股 (A share) fell.\n"
    "nothing here\n"
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a glossary and a corpus; the working directory."""
    write_glossary(tmp_path / "desk.tsv", LOAN, DUE, SHARE)
    write_rows(tmp_path / "news.jsonl", DOCUMENTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def glossary(*arguments: str) -> Ended:
    return domainkit("glossary", *arguments)


def refused(ended: Ended, *needed: str) -> None:
    assert ended.code == 1 and not ended.out
    assert ended.err.startswith("error: ") and "Traceback" not in ended.err
    for text in needed:
        assert text in ended.err


def type_in(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))


def test_the_matcher_is_imported_only_when_needed() -> None:
    code = "import sys, domainkit.cli; print([m for m in sys.modules if 'ahocorasick' in m or m.endswith('.matcher')])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


# check


def test_check(desk: Path) -> None:
    ended = glossary("check", "desk.tsv")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("desk is sound: desk.tsv, 3 terms, SHA-256 ")


def test_check_lists_every_fault(desk: Path) -> None:
    write_glossary(desk / "bad.tsv", *(row(id=f"B{i}", en=f"bond {i}x", zh=f"第{i}债", variants="") for i in range(40)))
    ended = glossary("check", "bad.tsv")
    refused(ended, "bad.tsv: 40 faults", "line 2: bad id 'B0'; instead: lower-case", "line 41: bad id 'B39'")
    assert len(ended.err.splitlines()) == 41
    assert "and 35 more" in glossary("map", "bad.tsv", "news.jsonl").err


def test_an_unknown_glossary(desk: Path) -> None:
    for command in (["check", "nowhere"], ["map", "nowhere", "news.jsonl"], ["stats", "nowhere"]):
        refused(glossary(*command), "unknown glossary 'nowhere'", "instead: ", "the path of a TSV file")


# map


def test_map_prints_a_line_a_document(desk: Path) -> None:
    ended = glossary("map", "desk.tsv", "news.jsonl")
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (0, "")
    assert [one["id"] for one in rows] == ["zh-1", "news.jsonl:2", "news.jsonl:3"]
    assert [one["text"] for one in rows] == [document["text"] for document in DOCUMENTS]
    assert [one["terms"] for one in rows] == TERMS
    assert "逾期" in ended.out  # not \u903e


def test_map_inline(desk: Path) -> None:
    assert glossary("map", "desk.tsv", "news.jsonl", "--inline") == Ended(0, INLINE, "")


def test_map_to_a_file(desk: Path) -> None:
    ended = glossary("map", "desk.tsv", "news.jsonl", "--out", "new/terms.jsonl")
    assert ended == Ended(0, "terms: new/terms.jsonl\n", "")
    assert (desk / "new" / "terms.jsonl").read_text(encoding="utf-8") == glossary("map", "desk.tsv", "news.jsonl").out
    assert [path.name for path in (desk / "new").iterdir()] == ["terms.jsonl"]


def test_map_overwrites_only_when_told(desk: Path) -> None:
    (desk / "out.txt").write_text("mine")
    line = ["map", "desk.tsv", "news.jsonl", "--inline", "--out", "out.txt"]
    refused(glossary(*line), "out.txt: the file exists already", "--overwrite")
    assert (desk / "out.txt").read_text() == "mine"
    assert glossary(*line, "--overwrite").code == 0
    assert (desk / "out.txt").read_text(encoding="utf-8") == INLINE


def test_map_several_files_and_formats(desk: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (desk / "a.txt").write_text("逾期\n逾期\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["NPL"]}), desk / "b.parquet")
    rows = [json.loads(line) for line in glossary("map", "desk.tsv", "a.txt", "b.parquet").out.splitlines()]
    assert [(one["id"], len(one["terms"])) for one in rows] == [("a.txt:1", 2), ("b.parquet:1", 1)]
    assert glossary("map", "desk.tsv", "a.txt", "--inline").out == "逾期 (delinquency)\n逾期 (delinquency)\n"


def test_map_standard_input(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "贷款逾期\n".encode("utf-8-sig"))
    one = json.loads(glossary("map", "desk.tsv", "-").out)
    assert (one["id"], one["text"], one["terms"][0]["start"]) == ("stdin", "贷款逾期\n", 2)
    type_in(monkeypatch, "x\n贷款".encode("gb18030"))
    refused(glossary("map", "desk.tsv", "-"), "standard input, line 2: not UTF-8 at byte 2", "instead: text in UTF-8")
    type_in(monkeypatch, b" \n")
    refused(glossary("map", "desk.tsv", "-"), "standard input: no text", "instead: ")


def test_a_fault_in_any_file_writes_nothing(desk: Path) -> None:
    (desk / "broken.jsonl").write_text('{"text": "a"}\n{"text"')
    refused(glossary("map", "desk.tsv", "news.jsonl", "broken.jsonl"), "broken.jsonl:2: not valid JSON")
    refused(glossary("map", "desk.tsv", "news.jsonl", "broken.jsonl", "--out", "out.jsonl"), "broken.jsonl:2")
    refused(glossary("map", "desk.tsv", "nowhere.txt"), "nowhere.txt: no such file")
    refused(glossary("map", "desk.tsv", "desk.tsv"), "desk.tsv: unknown file type '.tsv'")
    assert not (desk / "out.jsonl").exists()


def test_map_needs_a_file(desk: Path) -> None:
    assert glossary("map", "desk.tsv").code == 2


def test_a_reader_that_stops_early_is_no_fault(desk: Path) -> None:
    write_rows(desk / "long.jsonl", [{"text": "逾期 " * 1000}] * 300)
    command = [sys.executable, "-m", "domainkit", "glossary", "map", "desk.tsv", "long.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout and running.stderr
        assert json.loads(running.stdout.readline())["terms"]
        running.stdout.close()
        assert running.stderr.read() == b""


def test_long_input_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock: Iterator[Any] = iter(range(0, 1000, 10))
    monkeypatch.setattr(glossary_cli, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(progress, "QUIET", 15.0)
    documents = [Example(str(i)) for i in range(5)]
    assert list(glossary_cli.watched(iter(documents), "map")) == documents
    assert capsys.readouterr().err == "map: 2 documents, 0 documents/s\nmap: 4 documents, 0 documents/s\n"


# stats


def test_stats_of_a_glossary(desk: Path) -> None:
    ended = glossary("stats", "desk.tsv")
    first, *rest = ended.out.splitlines()
    assert first.startswith("desk: desk.tsv, SHA-256 ")
    assert rest == ["terms: 3", "forms: 11, 6 English and 5 Chinese", "categories: credit 2, markets 1"]


def test_stats_on_a_corpus(desk: Path) -> None:
    write_glossary(desk / "desk.tsv", LOAN, DUE, SHARE, row())
    lines = glossary("stats", "desk.tsv", "news.jsonl").out.splitlines()
    characters = sum(len(document["text"]) for document in DOCUMENTS)
    covered = 2 + 4 + 11 + 4 + 2
    assert lines[4:] == [
        f"corpus: 3 documents, {characters} characters",
        f"found: 5 terms, 1.7 a document, {covered / characters:.1%} of the characters",
        "occur: 3 of 4 terms, 75.0%",
        "          2  delinquency / 逾期",
        "          2  non-performing loan / 不良贷款",
        "          1  A share / A股",
    ]


def test_stats_of_a_shipped_glossary(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ROOT", desk)
    (desk / "glossaries").mkdir()
    (desk / "desk.tsv").rename(desk / "glossaries" / "desk.tsv")
    assert "occur: 3 of 3 terms" in glossary("stats", "desk", "news.jsonl").out
    refused(glossary("stats", "desk", "nowhere.jsonl"), "nowhere.jsonl: no such file")


# tokens

SPOKEN = "该客户贷款逾期，转为不良贷款。\nThe delinquency of NPLs rose."


def tokens(base: Path, *arguments: str) -> Ended:
    return glossary("tokens", "desk.tsv", *arguments, "--base", str(base))


def lengths(base: Path, texts: list[str]) -> list[tuple[int, int]]:
    """Tokens of each text by the base and by the base as `finetune` would extend it."""
    from domainkit.model.folder import read_tokenizer
    from domainkit.model.vocab import choose, inject

    own = read_tokenizer(base)
    extended = inject(own, choose(Glossary.read(Path("desk.tsv")), own, texts, rows=1000))
    return [(len(own.encode(t, add_special_tokens=False)), len(extended.encode(t, add_special_tokens=False)))
            for t in texts]  # fmt: skip


def test_tokens_of_a_text(desk: Path, tiny_base: Path) -> None:
    ended = tokens(tiny_base, SPOKEN)
    first, total, *lines = ended.out.splitlines()
    ((before, after),) = lengths(tiny_base, [SPOKEN])
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(rf"desk: \d+ new tokens beside those of {re.escape(str(tiny_base))}", first)
    assert after < before
    assert total == f"tokens: {before} → {after}, {1 - after / before:.1%} saved"
    stretches = [re.fullmatch(r" +(\d+) → (\d+) +(\S.*)", line) for line in lines[: lines.index("terms: 4")]]
    counts = [(int(found[1]), int(found[2])) for found in stretches if found]
    assert (len(counts), [sum(column) for column in zip(*counts, strict=True)]) == (len(stretches), [before, after])
    new = [re.match(r"\[(.+)\]  was (.+)", found[3]) for found in stretches if found]
    assert [found[1] for found in new if found] == ["不良贷款", " delinquency", " NPLs"]  # 逾期 is one anyway
    assert [len(found[2]) > 1 for found in new if found] == [True] * 3
    assert "⏎" in ended.out
    assert lines[lines.index("terms: 4") + 1 :] == [
        "  逾期 → delinquency", "  不良贷款 → non-performing loan", "  delinquency → 逾期", "  NPLs → 不良贷款",
    ]  # fmt: skip


def test_a_character_of_several_tokens_is_counted(desk: Path, tiny_base: Path) -> None:
    assert "     6 → 6    鑫×3|淼×3\n" in tokens(tiny_base, "鑫淼").out  # the tiny base knows neither


def test_tokens_without_a_term(desk: Path, tiny_base: Path) -> None:
    lines = tokens(tiny_base, "the bank").out.splitlines()
    assert lines[1].endswith(", 0.0% saved") and len(lines) == 4
    assert lines[3] == "terms: 0" and "[" not in lines[2]


def test_tokens_need_no_weights(desk: Path, tiny_base: Path) -> None:
    (desk / "bare").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, desk / "bare" / name)
    assert tokens(desk / "bare", SPOKEN).out.splitlines()[1:] == tokens(tiny_base, SPOKEN).out.splitlines()[1:]


def test_tokens_of_files(desk: Path, tiny_base: Path) -> None:
    more = [{"text": "逾期 prêt", "language": "fr"}, {"text": "逾期 NPL NPL NPL NPL"}]
    write_rows(desk / "more.jsonl", more)
    ended = tokens(tiny_base, "--file", "news.jsonl", "--file", "more.jsonl")
    zh, english, _, french, mixed = pairs = lengths(tiny_base, [row["text"] for row in (*DOCUMENTS, *more)])
    plain = pairs[2]

    def line(name: str, *found: tuple[int, int]) -> str:
        before, after = map(sum, zip(*found, strict=True))
        return f"{name}: {len(found)} documents, tokens {before} → {after}, {1 - after / before:.1%} saved"

    assert ended.code == 0 and zh[1] < zh[0]
    assert ended.out.splitlines()[1:] == [
        line("fr", french), line("other", english, plain, mixed), line("zh", zh), line("all", *pairs),
    ]  # fmt: skip


def test_tokens_of_a_text_and_a_file_and_standard_input(
    desk: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tokens(tiny_base, SPOKEN, "--file", "news.jsonl").out
    assert "terms: 4" in both and "all: 3 documents" in both
    type_in(monkeypatch, SPOKEN.encode())
    assert tokens(tiny_base, "-").out == tokens(tiny_base, SPOKEN).out
    type_in(monkeypatch, SPOKEN.encode())
    assert "all: 1 documents" in tokens(tiny_base, "--file", "-").out


def test_tokens_of_nothing_and_nowhere(desk: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in ([], [""], [" \n"]):
        refused(tokens(tiny_base, *nothing), "nothing to tokenize", "instead: a TEXT, or --file FILE")
    refused(tokens(tiny_base, "--file", "nowhere.txt"), "nowhere.txt: no such file")
    refused(tokens(desk / "nowhere", SPOKEN), "nowhere: no such folder", "instead: ")
    refused(tokens(desk, SPOKEN), f"{desk}: cannot read the tokenizer")
    refused(glossary("tokens", "nowhere", SPOKEN), "unknown glossary 'nowhere'")
    monkeypatch.setenv("DOMAINKIT_CACHE", str(desk / "cache"))
    refused(glossary("tokens", "desk.tsv", SPOKEN), "base smollm2-135m is not here yet", "domainkit base pull")
