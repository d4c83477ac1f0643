"""JSONL with gold annotation: what is written comes back, and every fault has its place and its remedy."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.data.jsonl import line, write_jsonl
from domainkit.data.overlaps import mentions
from domainkit.data.read import read
from domainkit.data.row import Allowed
from domainkit.types import Example, Relation, Span, UserError
from tests.data.annotated import TRICKY, fault, spans_in, texts

ASPIRIN = Span(2, 9, "Chemical", "D001241")
NAUSEA = Span(len(TRICKY) - 6, len(TRICKY), "Disease", "D009325")
FULL = Example(
    TRICKY, (ASPIRIN, NAUSEA), (Relation("D001241", "CID", "D009325", 0.25),), "a title", "L", "7", "g", "en", "here"
)


def rows_of(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**fields: Any) -> dict[str, Any]:
    """A sound row, some fields of it changed."""
    return {
        "text": TRICKY,
        "spans": [{"start": 2, "end": 9, "label": "Chemical", "concept": "D001241", "text": "aspirin"}],
        "relations": [],
    } | fields


def test_an_example_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    assert TRICKY[2:9] == "aspirin" and TRICKY[-6:] == "nausea"
    split = Example("severe liver and renal failure", (Span(0, 30, "Disease", None, ((0, 6), (17, 30))),), id="8")
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert write_jsonl(tmp_path / name, iter([FULL, split])) == 2
        assert list(read(tmp_path / name)) == [FULL, split]


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, [FULL])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes()[3:8] == bytes(5)  # neither name nor time
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode() == line(FULL) + "\n"


def test_what_is_empty_is_not_written() -> None:
    assert json.loads(line(Example("x"))) == {"text": "x"}
    assert json.loads(line(Example("x", (Span(0, 1, "L"),)))) == {
        "text": "x", "spans": [{"start": 0, "end": 1, "label": "L"}],
    }  # fmt: skip


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [FULL])
    before = (tmp_path / "a.jsonl").read_bytes()

    def broken() -> Any:
        yield FULL
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_jsonl(tmp_path / "a.jsonl", broken())
    assert (tmp_path / "a.jsonl").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@given(st.data(), texts("\n", "\r\n", '"', "\\", "\t", "\0"), st.floats(-2, 2))
def test_every_example_comes_back(tmp_path_factory: pytest.TempPathFactory, data: Any, text: str, score: float) -> None:
    spans = data.draw(spans_in(text))
    one = Example(text, spans, summary=text, label=text, id="1", group=text, language="he", source=text)
    names = list(mentions(one))
    if names:
        one = replace(one, relations=(Relation(names[0], "R", names[-1], score),))
    path = tmp_path_factory.getbasetemp() / "every.jsonl"
    write_jsonl(path, [one])
    assert list(read(path)) == [one]


def test_the_task_names_the_source_else_the_row(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "a.jsonl", {"text": "x", "source": "Reuters"}, {"text": "y", "source": {"name": 1}})
    assert [e.source for e in read(path)] == ["Reuters", ""]
    assert [e.source for e in read(path, source="news")] == ["news", "news"]


def test_parquet_keeps_gold_annotation(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([json.loads(line(FULL)), {"text": "none"}])
    parquet.write_table(table, tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")
    assert first == FULL and second.spans == second.relations == ()


SPAN = {"start": 2, "end": 9, "label": "Chemical"}
RELATION = {"head": "D001241", "label": "CID", "tail": "D001241"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "outside": ({"spans": [SPAN | {"end": 99}]}, f"span 2-99 lies outside the text of {len(TRICKY)} characters"),
    "one too far": ({"spans": [SPAN | {"end": len(TRICKY) + 1}]}, "lies outside the text"),
    "before": ({"spans": [SPAN | {"start": -1}]}, "span -1-9 lies outside"),
    "empty": ({"spans": [SPAN | {"end": 2}]}, "span 2-2 is empty or runs backwards"),
    "fraction": ({"spans": [SPAN | {"start": 2.0}]}, "start 2.0 and end 9 are not both whole numbers"),
    "truth": ({"spans": [SPAN | {"start": True}]}, "not both whole numbers"),
    "mention": ({"spans": [SPAN | {"text": "Aspirin"}]}, "the text at 2-9 is 'aspirin', not 'Aspirin'"),
    "no label": ({"spans": [{"start": 2, "end": 9}]}, "label None is not a name"),
    "no concept": ({"spans": [SPAN | {"concept": ""}]}, "concept '' is not an id"),
    "half a concept": ({"spans": [SPAN | {"concept": "D1,"}]}, "concept 'D1,' is not an id"),
    "twice": ({"spans": [SPAN, SPAN | {"concept": "D2"}]}, "span 2-9 Chemical is annotated twice, first at"),
    "no object": ({"spans": ["aspirin"]}, "a string, not an object"),
    "no array": ({"spans": {"start": 1}}, "'spans' is an object, not an array"),
    "parts": ({"spans": [SPAN | {"parts": [[2, 4], [3, 9]]}]}, "parts [[2, 4], [3, 9]] do not make up the span 2-9"),
    "short parts": ({"spans": [SPAN | {"parts": [[2, 4], [6, 8]]}]}, "do not make up the span"),
    "late parts": ({"spans": [SPAN | {"parts": [[3, 4], [6, 9]]}]}, "do not make up the span"),
    "odd parts": ({"spans": [SPAN | {"parts": [[2, 4, 9]]}]}, "parts are not pairs"),
    "argument": ({"relations": [RELATION | {"tail": "D9"}]}, "argument 'D9' is annotated nowhere in the document"),
    "stated twice": ({"relations": [RELATION, RELATION]}, "relation D001241 CID D001241 is stated twice"),
    "no type": ({"relations": [RELATION | {"label": " "}]}, "relation ' ' is not a name"),
    "score": ({"relations": [RELATION | {"score": "high"}]}, "score 'high' is not a number"),
    "endless": ({"relations": [RELATION | {"score": 10**400}]}, "is not a number"),
    "index": ({"relations": [RELATION | {"head": 0}]}, "argument 0 of a relation is not a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_annotation_has_a_place_and_a_remedy(tmp_path: Path, name: str) -> None:
    fields, what = BAD[name]
    path = rows_of(tmp_path / "a.jsonl", row(), row(**fields))
    message = fault(path)
    assert what in message and f"{path}:2" in message and "(2 lines read); instead: " in message
    assert "faults" not in message  # one fault is told once


def test_each_span_is_named(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "a.jsonl", row(spans=[SPAN, SPAN | {"start": 50, "end": 60}]))
    assert f"{path}:1, spans[2]: span 50-60" in fault(path)


@pytest.mark.parametrize(("encoding", "size", "unit"), [("utf-8", 1, "UTF-8 bytes"), ("utf-16-le", 2, "UTF-16 units")])
def test_offsets_in_other_units_are_recognised(tmp_path: Path, encoding: str, size: int, unit: str) -> None:
    start = len(TRICKY[:2].encode(encoding)) // size
    path = rows_of(tmp_path / "a.jsonl", row(spans=[SPAN | {"start": start, "end": start + 7, "text": "aspirin"}]))
    assert f"count characters; these offsets count {unit}" in fault(path)


def test_twenty_faults_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "a.jsonl", *[row(spans=[SPAN | {"start": 50 + i, "end": 60 + i}]) for i in range(33)])
    message = fault(path)
    assert "33 faults" in message and "and 13 more" in message
    assert [f"{path}:{i}," in message for i in range(1, 22)] == [True] * 20 + [False]


def test_unknown_labels_are_faults_only_when_the_known_ones_are_given(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "a.jsonl", row(spans=[SPAN | {"label": "Chemcal", "concept": "D1"}],
                                             relations=[{"head": "D1", "label": "CDI", "tail": "D1"}]))  # fmt: skip
    assert len(list(read(path))) == 1
    message = fault(path, allowed=Allowed({"Chemical", "Disease"}, {"CID"}))
    assert "unknown label 'Chemcal'" in message and "'Chemical' (one of ['Chemical', 'Disease'])" in message
    assert "unknown relation 'CDI'" in message and "2 faults" in message


def test_a_faulty_span_does_not_make_its_relation_faulty(tmp_path: Path) -> None:
    bad: dict[str, Any] = {"spans": [SPAN | {"end": 99, "concept": "D001241"}], "relations": [RELATION]}
    message = fault(rows_of(tmp_path / "a.jsonl", row(**bad)))
    assert "lies outside" in message and "nowhere" not in message


def test_relations_name_unlinked_spans_by_their_place(tmp_path: Path) -> None:
    bare = {"spans": [SPAN], "relations": [{"head": "2:9", "label": "R", "tail": "2:9"}]}
    (one,) = read(rows_of(tmp_path / "a.jsonl", row(**bare)))
    assert mentions(one)[one.relations[0].head] == one.spans
    linked = {"spans": [SPAN | {"concept": "D1"}], "relations": bare["relations"]}
    assert "'2:9' is annotated nowhere" in fault(rows_of(tmp_path / "a.jsonl", row(**linked)))


SCALARS = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.sampled_from(["Chemical", "D1", "", ","])
ANYTHING = SCALARS | st.lists(SCALARS | st.lists(SCALARS, max_size=3), max_size=3)
FIELDS = st.sampled_from(["start", "end", "label", "concept", "parts", "text", "head", "tail", "score"])
ODD = ANYTHING | st.lists(ANYTHING | st.dictionaries(FIELDS, ANYTHING, min_size=3, max_size=9), max_size=3)


@given(ODD, st.sampled_from(["spans", "relations"]))
def test_no_annotation_whatever_crashes(tmp_path_factory: pytest.TempPathFactory, value: Any, key: str) -> None:
    path = rows_of(tmp_path_factory.getbasetemp() / "any.jsonl", {"text": TRICKY, key: value})
    try:
        (one,) = read(path)
    except UserError as error:
        assert "any.jsonl" in str(error)
    else:
        assert all(0 <= s.start < s.end <= len(TRICKY) and s.label for s in one.spans)


def test_concepts_of_a_span() -> None:
    assert Span(0, 1, "L").concepts == ()
    assert Span(0, 1, "L", "D1").concepts == ("D1",)
    assert Span(0, 1, "L", "D1,c|SUB|G|2380+1|A").concepts == ("D1", "c|SUB|G|2380+1|A")
