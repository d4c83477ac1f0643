"""Reports: the contract, the round trip, and a page that is safe, self-contained and true."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainkit.curve import Curve, plot
from domainkit.passages import Mark, Passage, passages
from domainkit.report import Report, Table, bar, show, write_index
from domainkit.score import Score
from domainkit.types import Example, Span, UserError

HOSTILE = "<script>alert('x')</script>|\"onload=\"evil()`*&amp;\n# 标题"
VOID = {"meta", "br", "img", "link", "input", "hr"}
CONTRACT = [
    "domain", "task", "kind", "split", "examples", "scores", "per_label", "baseline", "base", "data",
    "adapter_sha256", "seconds", "peak_rss_mb", "seed", "versions",
]  # fmt: skip


def make(**changes: Any) -> Report:
    report = Report(
        domain="finance",
        task="lm",
        kind="lm",
        split="test",
        examples=1234,
        scores={
            "bits_per_byte/finance-en": Score(0.9, 0.8, 1.0),
            "change_percent/finance-en": Score(-10.04, -11.0, -9.0),
            "bits_per_byte/general-en": Score(1.01, 0.9, 1.1),
            "change_percent/general-en": Score(1.0, -0.5, 2.0),
        },
        per_label={},
        baseline={
            "base": {
                "bits_per_byte/finance-en": Score(1.0, 0.9, 1.1),
                "bits_per_byte/general-en": Score(1.0, 0.89, 1.09),
            }
        },
        base={"name": "smollm2-135m", "sha256": "ab" * 32, "bits": 4, "attention": "sdpa", "compute": "float32"},
        data={"fed": {"path": "data/fed.jsonl", "sha256": "cd" * 32, "format": "jsonl"}},
        adapter_sha256="ef" * 32,
        seconds=12.5,
        peak_rss_mb=1800,
        seed=0,
        versions={"torch": "2.13.0"},
        summary="Finance text got 10 % easier to predict.",
        title="Reads finance text",
        tables=(Table("Noise filter", ("rule", "lines"), (("too short", 12345), ("ratio", 0.25))),),
        curves=(Curve("Loss", "step", "nats", {"lm": ((0, 3.0), (1, 2.5), (2, 2.25))}),),
    )
    return replace(report, **changes)


def classified() -> Report:
    return make(
        task="regulation",
        kind="classify",
        scores={"macro_f1": Score(0.7, 0.66, 0.74), "accuracy": Score(0.8, 0.77, 0.83)},
        per_label={"Z (1026)": {"f1": 0.8, "precision": 0.75, "recall": 0.857, "support": 120}},
        baseline={
            "tfidf": {"macro_f1": Score(0.6, 0.56, 0.64), "accuracy": Score(0.78, 0.75, 0.81)},
            "all-data": {"macro_f1": Score(0.8, 0.76, 0.84)},
        },
    )


def extracted() -> Report:
    """With an example that has a mark in every state, some over others, right-to-left text and emoji."""
    text = "😀 Acute renal failure after قصور ibuprofen 👩‍⚕️ and <salt>."
    words = {"Acute renal failure": "gold", "renal failure": "wrong", "قصور": "missed", "ibuprofen": "mislinked",
             "👩‍⚕️": "spurious", "<salt>": "right"}  # fmt: skip
    marks = tuple(
        Mark(text.index(word), text.index(word) + len(word), "Disease" if len(word) > 9 else "Chemical", state, "D1")
        for word, state in words.items()
    )
    shown = (Passage("PMID 1", text, marks), Passage("PMID 2", "nothing wrong", (Mark(0, 7, "Chemical", "right"),)))
    return make(task="ner", kind="ner", passages=shown)


class Page(HTMLParser):
    """Checks that tags nest, and collects attributes and what is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.marked: list[list[str]] = []  # what stands under each <mark> that is open, one entry a mark
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.shown += data
        if "mark" in self.open and "li" not in self.open:
            self.marked.append([data, *(attrs["class"] or "" for tag, attrs in self.tags[-self.open.count("mark") :])])


def test_json_keeps_the_contract(tmp_path: Path) -> None:
    written = json.loads(make().write(tmp_path)[0].read_text(encoding="utf-8"))
    assert list(written)[: len(CONTRACT)] == CONTRACT
    assert written["scores"]["bits_per_byte/finance-en"] == {"value": 0.9, "low": 0.8, "high": 1.0}
    assert written["baseline"] == {"base": {"bits_per_byte/finance-en": 1.0, "bits_per_byte/general-en": 1.0}}
    assert written["data"]["fed"]["format"] == "jsonl"


@pytest.mark.parametrize(
    "report", [make(), classified(), extracted(), make(title=HOSTILE, tables=(), curves=(), baseline={})]
)
def test_round_trip(report: Report, tmp_path: Path) -> None:
    paths = report.write(tmp_path)
    assert [path.name for path in paths] == [f"{report.task}.json", f"{report.task}.md"]
    assert Report.read(paths[0]) == report


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"domain": "x"', '{"baseline_intervals": {}, "scores": {"a": 1}}'])
def test_a_damaged_report_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"lm\.json: not a report"):
        Report.read(path)


def test_a_report_without_passages_is_readable_and_one_with_odd_keys_is_not(tmp_path: Path) -> None:
    path = extracted().write(tmp_path)[0]
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["passages"][0]["marks"][1]["state"] == "wrong"
    old = {key: value for key, value in written.items() if key != "passages"}
    path.write_text(json.dumps(old))
    assert Report.read(path) == replace(extracted(), passages=())
    mark = written["passages"][1]["marks"][0]
    for odd in (
        {"figure": 1},
        {"passages": [written["passages"][0] | {"figure": 1}]},
        {"passages": [{"title": "", "text": "abc", "marks": [mark]}]},  # beyond the text
        {"passages": [{"title": "", "text": "nothing", "marks": [mark | {"state": "odd"}]}]},
    ):
        path.write_text(json.dumps(written | odd))
        with pytest.raises(UserError, match="not a report"):
            Report.read(path)


def test_a_missing_report_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Report.read(tmp_path / "none.json")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    with pytest.raises(UserError, match=r"scores\.f1\.low is (nan|inf)"):
        make(scores={"f1": Score(0.5, bad, 0.6)})
    with pytest.raises(UserError, match=r"curves\.0\.series\.lm\.1\.1 is"):
        make(curves=(Curve("Loss", "x", "y", {"lm": ((0, 1.0), (1, bad))}),))


def test_a_table_with_a_short_row_is_refused() -> None:
    with pytest.raises(ValueError, match="'Losses' has 2 columns, a row has 1"):
        Table("Losses", ("a", "b"), ((1,),))


def test_lines_put_the_paired_change_beside_its_score() -> None:
    finance, general = make().lines()
    assert (finance.name, finance.rival, finance.verdict) == ("bits_per_byte/finance-en", "base", "better")
    assert finance.change == Score(-10.04, -11.0, -9.0)
    assert general.verdict == "no clear difference"  # its interval holds 0


def test_lines_without_a_pair_compare_intervals() -> None:
    verdicts = {(line.name, line.rival): line.verdict for line in classified().lines()}
    assert verdicts == {
        ("macro_f1", "tfidf"): "better",
        ("macro_f1", "all-data"): "worse",
        ("accuracy", "tfidf"): "no clear difference",
    }


def test_a_worse_adapter_is_called_worse() -> None:
    scores = {"bits_per_byte/x": Score(2, 1, 3), "change_percent/x": Score(5, 4, 6)}
    line = make(scores=scores, baseline={"base": {"bits_per_byte/x": Score(1.9, 1, 3)}}).lines()[0]
    assert line.verdict == "worse"


def test_a_score_without_baseline_still_stands() -> None:
    lines = make(baseline={}).lines()
    assert [line.name for line in lines] == list(make().scores)
    assert {line.verdict for line in lines} == {""}


def test_the_page_shows_every_figure(tmp_path: Path) -> None:
    path = write_index([make(), classified()], tmp_path)
    shown = " ".join(Page(path.read_text(encoding="utf-8")).shown.split())
    for text in (
        "Finance text got 10 % easier to predict.", "Reads finance text", "0.900", "0.800 to 1.000",
        "-10.0 % (-11.0 to -9.0)", "12,345", "0.250", "+0.100", "better", "worse", "Z (1026)", "tfidf",
        "smollm2-135m", "ab" * 32, "cd" * 32, "ef" * 32, "data/fed.jsonl", "2.13.0", "1,234 examples",
    ):  # fmt: skip
        assert text in shown, text
    assert path.name == "index.html"


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text = write_index([make(), classified(), extracted()], tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not {"src", "href", "srcset", "action"} & attributes
    assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", text)
    policy = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme: dark" in text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    report = make(
        domain=HOSTILE,
        title=HOSTILE,
        summary=HOSTILE,
        scores={HOSTILE: Score(1, 1, 1)},
        per_label={HOSTILE: {HOSTILE: 1.0}},
        baseline={HOSTILE: {HOSTILE: Score(1, 1, 1)}},
        data={HOSTILE: {HOSTILE: HOSTILE}},
        versions={HOSTILE: HOSTILE},
        tables=(Table(HOSTILE, (HOSTILE,), ((HOSTILE,),)),),
        curves=(Curve(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: ((0, 1),)}),),
        passages=(Passage(HOSTILE, HOSTILE, (Mark(0, len(HOSTILE), HOSTILE, "missed", HOSTILE),)),),
    )
    text = write_index([report], tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert "onload" not in {name for _, attrs in page.tags for name in attrs}
    assert page.shown.count("<script>alert('x')</script>") >= 15
    markdown = report.markdown()
    assert not re.search(r"(?<!\\)<script", markdown)
    for row in re.findall(r"^\|.*", markdown, re.M):  # no cell breaks out of its row
        assert row.endswith("|")
    assert "\n# 标题" not in markdown


def test_the_page_marks_words_with_state_label_and_concept(tmp_path: Path) -> None:
    text = write_index([extracted()], tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    under = {data: [name.split()[0] for name in names] for data, *names in page.marked}
    assert under == {
        "Acute ": ["gold"], "renal failure": ["gold", "wrong"], "قصور": ["missed"], "ibuprofen": ["mislinked"],
        "👩‍⚕️": ["spurious"], "<salt>": ["right"], "nothing": ["right"],
    }  # fmt: skip
    assert (  # words tell the state, not colour alone
        "😀 Acute renal failuregold Diseasewrong Disease after قصورmissed Chemical ibuprofenmislinked Chemical "
        "👩‍⚕️spurious Chemical and <salt>Chemical."
    ) in page.shown
    for name in ("mark", "b"):
        hints = {attrs.get("title") for tag, attrs in page.tags if tag == name}
        assert {"gold Disease: D1", "wrong Disease: D1", "Chemical: D1"} <= hints
    (first, second) = [attrs for tag, attrs in page.tags if attrs.get("class") == "text"]
    assert first["dir"] == second["dir"] == "auto"
    assert page.shown.index("PMID 1") < page.shown.index("PMID 2")


def test_a_page_without_passages_speaks_of_none(tmp_path: Path) -> None:
    assert "Examples" not in Page(write_index([make()], tmp_path).read_text(encoding="utf-8")).shown


def test_markdown_tells_the_errors_of_each_passage(tmp_path: Path) -> None:
    text = extracted().write(tmp_path)[1].read_text(encoding="utf-8")
    assert "## Examples, errors first\n\n| document | errors |\n" in text
    assert (
        "| PMID 1 | wrong Disease: D1 “renal failure”; missed Chemical: D1 “قصور”; "
        "mislinked Chemical: D1 “ibuprofen”; spurious Chemical: D1 “👩‍⚕️” |\n| PMID 2 | none |" in text
    )


def test_passages_of_predictions_reach_the_page_errors_first(tmp_path: Path) -> None:
    gold = [Example("nausea and <b>salt</b>", (Span(0, 6, "Disease"),), id=name) for name in ("sound", "faulty")]
    shown = passages(gold, [gold[0], replace(gold[1], spans=())])
    text = write_index([make(passages=shown)], tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert [(data, names[0].split()[0]) for data, *names in page.marked] == [("nausea", "missed"), ("nausea", "right")]
    assert page.shown.index("faulty") < page.shown.index("sound")
    assert "<b>salt" not in text
    assert "nauseamissed Disease and <b>salt</b>" in page.shown


def test_an_outcome_brings_its_examples_into_the_report() -> None:
    from domainkit.evaluate import report
    from domainkit.kinds import Outcome, Prepared

    shown = extracted().passages
    named: Any = SimpleNamespace(name="n", kind="ner", title="t", facts={"name": "n"})
    facts = {"data": {}, "adapter_sha256": "", "seconds": 0.0, "seed": 0}
    outcome = Outcome({}, {}, {}, "", examples=shown)
    assert report(outcome, named, named, named, Prepared((), ()), **facts).passages == shown


def test_markdown_aligns_numerals_to_the_right(tmp_path: Path) -> None:
    text = make().write(tmp_path)[1].read_text(encoding="utf-8")
    assert text.startswith("# Reads finance text\n\nFinance text got 10 % easier")
    assert "| rule | lines |\n| --- | ---: |\n| too short | 12,345 |\n| ratio | 0.250 |" in text
    assert (
        "| bits_per_byte/finance-en | base | 1.000 | 0.900 | 0.800 to 1.000 | -10.0 % (-11.0 to -9.0) better |" in text
    )


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().write(tmp_path)
    write_index([make()], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    for write in (lambda: make(seed=1).write(tmp_path), lambda: write_index([make(seed=1)], tmp_path)):
        with pytest.raises(UserError, match="disk is full"):
            write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (0.0, "0"), (0.5, "0.500"), (0.01234, "0.0123"), (12.34567, "12.346"),
     (123.456, "123.5"), (-98765.4, "-98,765"), ("0.5", "0.5"), (True, "True")],
)  # fmt: skip
def test_numbers_are_readable(value: object, text: str) -> None:
    assert show(value) == text


def test_bars_of_one_family_share_an_axis() -> None:
    lines = make().lines()
    finance, general = bar(lines[0], lines), bar(lines[1], lines)
    assert finance["mark"] == general["mark"]  # no change is at the same place
    assert finance["low"] < finance["value"] < finance["high"] < general["low"] < general["mark"] < general["high"]


def test_a_share_without_a_baseline_does_not_fill_its_axis() -> None:
    shares = make(scores={"f1": Score(0.5, 0.4, 0.6)}, baseline={}).lines()
    assert bar(shares[0], shares) == {"low": 40.8, "high": 59.2, "value": 50.0, "mark": 50.0}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=1, max_size=900))
def test_curves_stay_inside_their_frame(points: list[tuple[float, float]]) -> None:
    drawn = plot(Curve("t", "x", "y", {"a": tuple(points), "none": ()}))
    assert drawn is not None
    assert list(drawn["series"]) == ["a"]
    places = [tuple(map(float, pair.split(","))) for pair in drawn["series"]["a"].split()]
    assert len(places) <= 800
    assert all(0 <= x <= 560 and 0 <= y <= 180 for x, y in places)
    for axis, end in (("x", 560), ("y", 180)):
        assert len(drawn[axis]) <= 6
        assert all(-0.1 <= place <= end + 0.1 for place, _ in drawn[axis])


def test_a_falling_loss_falls_on_the_page() -> None:
    drawn = plot(Curve("t", "x", "y", {"a": ((0, 3.0), (10, 1.0))}))
    assert drawn is not None
    assert drawn["series"]["a"] == "0.0,0.0 560.0,180.0"  # SVG counts from the top left
    assert drawn["y"] == [(180.0, "1"), (135.0, "1.5"), (90.0, "2"), (45.0, "2.5"), (0.0, "3")]
    assert plot(Curve("t", "x", "y", {"a": ()})) is None
