"""`domainkit extract`: one line for each document, in order, whatever the input and however often it is cut off."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import domainkit
from domainkit import extract as story
from domainkit.data.jsonl import write_jsonl
from domainkit.data.read import read
from domainkit.documents import LETTERS
from domainkit.extract import Request, extract
from domainkit.kinds import CHUNK, ner
from domainkit.model import bundle
from domainkit.run import Run
from domainkit.types import Example, Relation, Span, UserError
from tests.clinic import Clinic, by_dictionary, make_clinic, note
from tests.data.annotated import texts
from tests.test_bad_input import fault
from tests.test_recipes import domainkit as command
from tests.test_recipes import snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("clinic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        yield make_clinic(folder)


@pytest.fixture(scope="module")
def run(clinic: Clinic) -> Run:
    return domainkit.load(clinic.run)


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ner.Kind, "predict", by_dictionary)


@dataclass
class Stub:
    """Stands in for a run: finds the first and the last character of a document, or is cut off at one."""

    dies_at: str = ""  # id of a document
    chunks: list[int] | None = None  # how many documents it was given at once

    def annotate(self, examples: Sequence[Example], *, summary: str = "") -> list[Example]:
        if any(example.id == self.dies_at for example in examples):
            raise KeyboardInterrupt
        if self.chunks is not None:
            self.chunks.append(len(examples))
        return [found(example) for example in examples]


def found(example: Example) -> Example:
    text = example.text
    spans = {(0, 1), (len(text) - 1, len(text))} if text else set()
    marked = tuple(Span(start, end, "Chemical", f"D{end}") for start, end in sorted(spans))
    relations = (Relation("D1", "causes", "D1", 0.123456789),) if spans else ()
    return replace(example, spans=marked, relations=relations, summary="")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stub]:
    """Puts a stub in the place of the run that is loaded."""

    def put(**changes: Any) -> Stub:
        made = Stub(**changes)
        monkeypatch.setattr(story, "load", lambda *_, **__: made)
        return made

    return put


def documents(folder: Path, count: int, **changes: str) -> Path:
    """A JSONL file of short documents."""
    path = folder / "notes.jsonl"
    write_jsonl(path, (Example(f"Note {i}: {i * 'x'}.", id=f"n{i}", **changes) for i in range(count)))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


# What is written


def test_every_document_with_what_the_run_finds(clinic: Clinic, run: Run, tmp_path: Path) -> None:
    """Some are blank; the chunks go beyond a file's end."""
    notes = [note(100 + i, i % 3) for i in range(CHUNK + 4)]
    source = tmp_path / "notes.jsonl"
    write_jsonl(source, notes)
    (tmp_path / "last.txt").write_text(notes[1].text, encoding="utf-8")
    out = tmp_path / "new" / "found.jsonl"
    ended = command("extract", str(clinic.run), str(source), str(tmp_path / "last.txt"), "--out", str(out))
    assert (ended.code, ended.out) == (0, f"documents: {out}, {CHUNK + 5} of them\n")
    assert f"{CHUNK + 5} of {CHUNK + 5} documents" in ended.err and "documents/s" in ended.err
    written = list(read(out))
    assert [(e.id, e.text, e.source) for e in written] == [
        *((e.id, e.text, str(source)) for e in notes), ("last.txt", notes[1].text, str(tmp_path / "last.txt")),
    ]  # fmt: skip
    told = run.extract([e.text for e in written])
    assert [e.spans for e in written] == [e.spans for e in told]
    named = {(e.text[s.start : s.end], s.concept) for e in written for s in e.spans}
    assert named >= {("aspirin", "D1"), ("lithium", "D2"), ("tremor", "D4"), ("heart failure", "D5")}
    assert not any(e.summary for e in written)
    assert sorted(path.name for path in out.parent.iterdir()) == ["found.jsonl"]


def test_summaries_are_written_when_they_are_asked_for(clinic: Clinic, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(note(7).text)
    line = ("extract", str(clinic.run), str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.jsonl"))
    assert command(*line, "--summary", "summary").code == 0
    assert rows(tmp_path / "a.jsonl")[0]["summary"]


@pytest.mark.parametrize("text", ["", " \r\n\t", "\ufeff"])
def test_a_blank_document_is_a_line_without_findings(clinic: Clinic, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    out = tmp_path / "found.jsonl"
    assert (
        command("extract", str(clinic.run), str(tmp_path / "a.txt"), "--out", str(out), "--summary", "summary").code
        == 0
    )
    assert rows(out) == [{"id": "a.txt", "source": str(tmp_path / "a.txt"), "text": text.strip("\ufeff")}]


@pytest.mark.usefixtures("dictionary")
@pytest.mark.parametrize("before", ["", "\ufeff", "👩‍⚕️ 👍🏽\r\n", "שָׁלוֹם العربية‏ ", "é ﬁ \u2028\r\n\r\n"])
def test_offsets_are_those_of_the_text_in_the_output(clinic: Clinic, tmp_path: Path, before: str) -> None:
    text = before + note(22).text.replace(". ", ".\r\n")
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert command("extract", str(clinic.run), str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.jsonl")).code == 0
    (row,) = rows(tmp_path / "a.jsonl")
    assert row["text"] == text.removeprefix("\ufeff")
    told = [(row["text"][span["start"] : span["end"]], span["concept"]) for span in row["spans"]]
    assert told == [(note(22).text[span.start : span.end], span.concept) for span in note(22).spans]


@pytest.mark.usefixtures("dictionary")
def test_a_long_document_is_read_in_windows(clinic: Clinic, tmp_path: Path) -> None:
    """None of their mentions is lost, none told twice where windows overlap."""
    one = note(3, 1_000)
    (tmp_path / "a.txt").write_text(one.text)
    assert command("extract", str(clinic.run), str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.jsonl")).code == 0
    (row,) = rows(tmp_path / "a.jsonl")
    assert [(span["start"], span["end"]) for span in row["spans"]] == [(span.start, span.end) for span in one.spans]


# What is read


def test_gold_is_not_taken_for_a_finding(tmp_path: Path, clinic: Clinic, stub: Any) -> None:
    """The rest of what is known of a document stays; a relation's score is for people."""
    stub()
    write_jsonl(tmp_path / "a.jsonl", [replace(note(1), language="en", group="g")])
    extract(Request(clinic.run, (tmp_path / "a.jsonl",), tmp_path / "found.jsonl"))
    (row,) = rows(tmp_path / "found.jsonl")
    assert (row["id"], row["language"], row["group"]) == ("note 1", "en", "g") and "summary" not in row
    assert [span["concept"] for span in row["spans"]] == ["D1", f"D{len(note(1).text)}"]
    assert row["relations"] == [{"head": "D1", "label": "causes", "tail": "D1", "score": 0.1235}]


def test_formats(tmp_path: Path, clinic: Clinic, stub: Any) -> None:
    stub()
    pubtator = "227508|t|Naloxone reverses\n227508|a|the effect.\n227508\t0\t8\tNaloxone\tChemical\tD9270\n\n"
    (tmp_path / "a.txt").write_text(pubtator)
    (tmp_path / "b.txt").write_text("plain")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "one.txt").write_text("aspirin")
    (tmp_path / "c" / "one.ann").write_text("nothing that BRAT knows")  # not needed: the text is
    (tmp_path / "c" / "two.txt").write_text("without an .ann")
    (tmp_path / "d.tsv").write_text("Aspirin B-Chemical\nhelps O\n".replace(" ", "\t"))
    asked = tuple(tmp_path / name for name in ("b.txt", "a.txt", "c", "d.tsv", "c/one.txt", "b.txt"))
    done = extract(Request(clinic.run, asked, tmp_path / "found.jsonl"))
    told = [(row["id"], row["text"]) for row in rows(tmp_path / "found.jsonl")]
    assert told == [
        ("b.txt", "plain"), ("227508", "Naloxone reverses the effect."), ("one.txt", "aspirin"),
        ("two.txt", "without an .ann"), ("d.tsv:1", "Aspirin helps"),
    ]  # fmt: skip
    assert (done.documents, done.files, done.left_out) == (5, 5, ())


def test_a_format_can_be_named(tmp_path: Path, clinic: Clinic, stub: Any) -> None:
    stub()
    (tmp_path / "readme.md").write_text("# Aspirin")
    line = ("extract", str(clinic.run), str(tmp_path / "readme.md"), "--out", str(tmp_path / "found.jsonl"))
    fault(command(*line), "readme.md", "unknown file type '.md'")
    fault(command(*line, "--format", "word"), "--format: unknown format 'word'", "'text'")
    assert command(*line, "--format", "text").code == 0
    assert [row["text"] for row in rows(tmp_path / "found.jsonl")] == ["# Aspirin"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts("\n", "\r\n", "\r", "\ufeff") | st.sampled_from(["", " "]), min_size=1, max_size=40))
def test_any_text_comes_out_as_it_went_in(
    clinic: Clinic, stub: Any, tmp_path_factory: pytest.TempPathFactory, given_texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    files = [folder / f"{i}.txt" for i in range(len(given_texts))]
    for file, text in zip(files, given_texts, strict=True):
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    made = stub(chunks=[])
    extract(Request(clinic.run, tuple(files), folder / "out.jsonl"))
    assert [(e.id, e.text) for e in read(folder / "out.jsonl", blank=True)] == [
        (file.name, text) for file, text in zip(files, given_texts, strict=True)
    ]
    assert sum(made.chunks) == len(files) and max(made.chunks) <= CHUNK


def test_long_documents_are_not_held_together(tmp_path: Path, clinic: Clinic, stub: Any) -> None:
    made = stub(chunks=[])
    sizes = [LETTERS * 3, LETTERS // 2 + 1, LETTERS // 2, *[9] * (CHUNK + 1)]
    write_jsonl(tmp_path / "a.jsonl", (Example("x" * size) for size in sizes))
    extract(Request(clinic.run, (tmp_path / "a.jsonl",), tmp_path / "found.jsonl"))
    assert made.chunks == [1, 2, CHUNK, 1]


# Bad files among good ones


def test_bad_files_do_not_stop_the_rest(tmp_path: Path, clinic: Clinic, stub: Any) -> None:
    stub()
    good = [tmp_path / "a.txt", tmp_path / "e.jsonl"]
    good[0].write_text("first")
    write_jsonl(good[1], [Example("last", id="z")])
    (tmp_path / "b.jsonl").write_text('{"text": "whole"}\n{"text": "ha')
    (tmp_path / "c.txt").write_bytes("naïve".encode("latin1"))
    (tmp_path / "d.jsonl").write_text('{"text": "abc", "spans": [{"start": 1, "end": 9, "label": "Chemical"}]}\n')
    names = ("a.txt", "b.jsonl", "nowhere.txt", "c.txt", "d.jsonl", "e.jsonl")
    ended = command(
        "extract", str(clinic.run), *(str(tmp_path / name) for name in names), "--out", str(tmp_path / "out.jsonl")
    )
    assert (ended.code, ended.out) == (1, f"documents: {tmp_path / 'out.jsonl'}, 2 of them\n")
    assert "error: 4 of 6 files could not be read and were left out\n" in ended.err
    for name, reason in (
        ("nowhere.txt", "no such file"), ("b.jsonl:2", "not valid JSON"), ("c.txt:1", "not UTF-8"),
        ("d.jsonl:1, spans[1]", "lies outside the text of 3 characters"),
    ):  # fmt: skip
        assert any(f"{tmp_path / name}: " in line and reason in line for line in ended.err.splitlines()), name
    assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == ["a.txt", "z"]


def test_only_bad_files_write_nothing(tmp_path: Path, clinic: Clinic) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.jsonl").touch()
    before = snapshot(tmp_path)
    out = tmp_path / "new" / "out.jsonl"
    ended = command("extract", str(clinic.run), f"{tmp_path}/a.txt", f"{tmp_path}/b.jsonl", "--out", str(out))
    fault(ended, "2 of 2 files", "a.txt:1: not UTF-8", "b.jsonl: the file is empty")
    assert snapshot(tmp_path) == before and not out.parent.exists()


# Whose output it is


def test_nothing_is_overwritten_unasked(tmp_path: Path, clinic: Clinic, stub: Any) -> None:
    stub()
    source, out = documents(tmp_path, 3), tmp_path / "out.jsonl"
    out.write_text("mine")
    line = ("extract", str(clinic.run), str(source), "--out", str(out))
    fault(command(*line), f"{out}: is there already", "--overwrite")
    assert out.read_text() == "mine"
    assert command(*line, "--overwrite").code == 0 and len(rows(out)) == 3


@pytest.mark.parametrize("name", ["found.json", "found.jsonl.gz", "found"])
def test_the_output_is_called_what_it_is(tmp_path: Path, clinic: Clinic, name: str) -> None:
    ended = command("extract", str(clinic.run), str(documents(tmp_path, 1)), "--out", str(tmp_path / name))
    fault(ended, tmp_path / name, "lines of JSON", ".jsonl")


def test_an_input_is_not_written_over(tmp_path: Path, clinic: Clinic) -> None:
    source = documents(tmp_path, 3)
    before = snapshot(tmp_path)
    ended = command("extract", str(clinic.run), str(tmp_path), "--out", str(source), "--overwrite")
    fault(ended, f"{source}: is read, so it cannot be written")
    assert snapshot(tmp_path) == before


def test_what_is_no_run(tmp_path: Path) -> None:
    fault(command("extract", str(tmp_path), str(documents(tmp_path, 1)), "--out", f"{tmp_path}/a.jsonl"),
          f"{tmp_path}: no finished run here")  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "summary", "message"),
    [
        (("lm", "classify"), "", "finds entities or relations; instead: a medical run"),
        (("lm", "summary"), "", "finds entities or relations; instead: to ask for summaries"),
        (("ner",), "title", "no task 'title' of this run writes summaries"),
    ],
)
def test_a_run_without_such_a_task(
    tmp_path: Path, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, kinds: Sequence[str], summary: str, message: str
) -> None:
    record = replace(bundle.read(clinic.run), tasks={kind: {"kind": kind} for kind in kinds})
    monkeypatch.setattr(bundle, "read", lambda folder: record)
    more = ["--summary", summary] if summary else []
    fault(command("extract", str(clinic.run), str(documents(tmp_path, 1)), "--out", f"{tmp_path}/a.jsonl", *more),
          message)  # fmt: skip


# Cut off and gone on with

COUNT = 3 * CHUNK + 5


def cut_off(request: Request, stub: Any, at: int) -> Path:
    """An output that ended while document `at` was read: what stands beside it."""
    stub(dies_at=f"n{at}")
    with pytest.raises(KeyboardInterrupt):
        extract(request)
    assert not request.out.exists()
    return request.out.with_name(f"{request.out.name}.part")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, COUNT - 1), st.floats(0, 1))
def test_wherever_it_was_cut_off_the_bytes_are_the_same(
    clinic: Clinic, stub: Any, tmp_path_factory: pytest.TempPathFactory, at: int, share: float
) -> None:
    """Also in the middle of a line; only what is missing is read again."""
    folder = tmp_path_factory.mktemp("cut")
    request = Request(clinic.run, (documents(folder, COUNT),), folder / "out.jsonl")
    stub()
    extract(request)
    whole = request.out.read_bytes()
    request.out.unlink()
    part = cut_off(request, stub, at)
    assert whole.startswith(part.read_bytes()) and part.read_bytes().count(b"\n") == at // CHUNK * CHUNK
    os.truncate(part, int(share * part.stat().st_size))
    left = COUNT - part.read_bytes().count(b"\n") // CHUNK * CHUNK
    made = stub(chunks=[])
    assert extract(request).documents == COUNT
    assert request.out.read_bytes() == whole and sum(made.chunks) == left
    assert sorted(path.name for path in folder.iterdir()) == ["notes.jsonl", "out.jsonl"]


def test_killed_in_the_middle(clinic: Clinic, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", (note(i, 1) for i in range(4 * CHUNK)))
    line = ["extract", str(clinic.run), str(tmp_path / "a.jsonl"), "--out"]
    assert command(*line, str(tmp_path / "whole.jsonl")).code == 0
    out = tmp_path / "out.jsonl"
    part = out.with_name("out.jsonl.part")
    process = subprocess.Popen([sys.executable, "-m", "domainkit", *line, str(out)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert part.stat().st_size and not out.exists()
    ended = command(*line, str(out))
    assert ended.code == 0 and f" of {4 * CHUNK} documents" not in ended.err  # it did not begin again
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_all_was_written_but_not_renamed(clinic: Clinic, stub: Any, tmp_path: Path) -> None:
    """The run is not even loaded again."""
    request = Request(clinic.run, (documents(tmp_path, COUNT),), tmp_path / "out.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        stub()
        patch.setattr(story, "sync", full)
        with pytest.raises(UserError, match="the disk is full"):
            extract(request)
    stub(chunks=None).annotate = None  # nobody asks for it
    assert extract(request).documents == COUNT == len(rows(request.out))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def other_text(request: Request) -> Request:
    write_jsonl(request.inputs[0], (Example("Other.", id=f"n{i}") for i in range(COUNT)))
    return request


def fewer(request: Request) -> Request:
    documents(request.inputs[0].parent, CHUNK)
    return request


def another_first(request: Request) -> Request:
    (request.inputs[0].parent / "0.txt").write_text("first")
    return replace(request, inputs=(request.inputs[0].parent / "0.txt", *request.inputs))


def other_options(request: Request) -> Request:
    return replace(request, summary="summary")


def no_note(request: Request) -> Request:
    (request.out.parent / "out.jsonl.part.json").write_text("{")
    return request


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_text, r"out\.jsonl\.part:1: 'n0' is another document than when"),
        (fewer, r"out\.jsonl\.part: there are fewer documents than when"),
        (another_first, r"out\.jsonl\.part:1: '0\.txt' is another document"),
        (other_options, r"out\.jsonl\.part: holds what another run or other options found"),
        (no_note, r"out\.jsonl\.part: holds what another run or other options found"),
    ],
)
def test_changed_meanwhile(
    clinic: Clinic, stub: Any, tmp_path: Path, change: Callable[[Request], Request], message: str
) -> None:
    """It is refused and kept, or begun again when that is asked for."""
    request = Request(clinic.run, (documents(tmp_path, COUNT),), tmp_path / "out.jsonl")
    part = cut_off(request, stub, 2 * CHUNK)
    asked, before = change(request), part.read_bytes()
    stub()
    with pytest.raises(UserError, match=f"{message}.*instead: .*--overwrite to start again"):
        extract(asked)
    assert part.read_bytes() == before
    extract(replace(asked, overwrite=True))
    again = replace(asked, out=tmp_path / "again.jsonl")
    extract(again)
    assert asked.out.read_bytes() == again.out.read_bytes()


def test_more_files_may_be_added(clinic: Clinic, stub: Any, tmp_path: Path) -> None:
    request = Request(clinic.run, (documents(tmp_path, COUNT),), tmp_path / "out.jsonl")
    cut_off(request, stub, 2 * CHUNK)
    (tmp_path / "z.txt").write_text("last")
    made = stub(chunks=[])
    extract(replace(request, inputs=(*request.inputs, tmp_path / "z.txt")))
    assert sum(made.chunks) == CHUNK + 6 and rows(request.out)[-1]["id"] == "z.txt"


def test_a_file_that_goes_while_others_are_read(clinic: Clinic, stub: Any, tmp_path: Path) -> None:
    files = [documents(tmp_path, CHUNK), tmp_path / "z.txt"]
    files[1].write_text("last")
    made = stub()

    def annotate(examples: Sequence[Example], *, summary: str) -> list[Example]:
        files[1].unlink(missing_ok=True)
        return [found(example) for example in examples]

    made.annotate = annotate
    with pytest.raises(UserError, match=f"{CHUNK} documents were read where there had been {CHUNK + 1}"):
        extract(Request(clinic.run, tuple(files), tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()
