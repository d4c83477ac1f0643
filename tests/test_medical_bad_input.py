"""What goes wrong with medical data: one clear message that names the place, nothing trained or lost. All through the
command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clinic import CONCEPTS, RELATIONS, TYPES, make_domain
from tests.test_bad_input import fault
from tests.test_graph import write_graph
from tests.test_recipes import domainkit, snapshot

CYCLE = ("D7\tdisease A\t\tT184\tD8\t", "D8\tdisease B\t\tT184\tD9\t", "D9\tdisease C\t\tT184\tD7\t")
TEXT = "👩‍⚕️ took aspirin and had nausea."
AT = TEXT.index("aspirin")
BYTES = len(TEXT[:AT].encode())
GOOD = {"start": AT, "end": AT + 7, "label": "Chemical", "concept": "D1"}


@pytest.fixture
def domain(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path_factory.mktemp("cache")))  # a proof that the base splits stays
    return make_domain(tmp_path / "clinic", ("ner",))


def refused(domain: Path, base: Path, *more: str, needed: tuple[object, ...]) -> None:
    out = domain.parent / "run"
    before = snapshot(domain.parent)
    fault(domainkit("finetune", str(domain), "--base", str(base), "--out", str(out), *more), *needed)
    assert snapshot(domain.parent) == before and not out.exists()


def data(folder: Path, *spans: dict[str, Any], **more: Any) -> Path:
    """A JSONL file whose second document has these spans."""
    path = folder / "mine.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in ({"text": "Fine."}, {"text": TEXT, "spans": spans} | more))
    )
    return path


@pytest.mark.parametrize(
    ("spans", "needed"),
    [
        ([{**GOOD, "end": 99}], ("mine.jsonl:2, spans[1]", f"outside the text of {len(TEXT)} characters")),
        ([GOOD, {**GOOD, "start": -1}], ("mine.jsonl:2, spans[2]", "outside the text")),
        ([{**GOOD, "end": GOOD["start"]}], ("mine.jsonl:2, spans[1]", "empty or runs backwards")),
        ([GOOD, {**GOOD, "concept": "D2"}], ("mine.jsonl:2, spans[2]", "annotated twice")),
        ([{**GOOD, "concept": ""}], ("mine.jsonl:2, spans[1]", "concept '' is not an id")),
        ([{**GOOD, "text": "nausea"}], ("mine.jsonl:2, spans[1]", "is 'aspirin', not 'nausea'")),
        (
            [{**GOOD, "start": BYTES, "end": BYTES + 7, "text": "aspirin"}],
            ("mine.jsonl:2", "these offsets count UTF-8 bytes"),
        ),
    ],
)
def test_spans_that_cannot_be(
    domain: Path, tiny_base: Path, spans: list[dict[str, Any]], needed: tuple[object, ...]
) -> None:
    file = data(domain.parent, *spans)
    refused(domain, tiny_base, "--data", f"ner={file}", needed=(*needed, "instead:"))


def test_utf16_offsets_are_told(domain: Path, tiny_base: Path) -> None:
    """What JavaScript counts: the first emoji is two units."""
    shifted = {**GOOD, "start": GOOD["start"] + 1, "end": GOOD["end"] + 1, "text": "aspirin"}
    file = data(domain.parent, shifted)
    refused(domain, tiny_base, "--data", f"ner={file}", needed=("these offsets count UTF-16 units",))


def test_no_label_is_known(domain: Path, tiny_base: Path) -> None:
    file = data(domain.parent, {**GOOD, "label": "Drug"})
    needed = ("ner: no span is labelled Chemical or Disease", "instead: labels = ['Drug']")
    refused(domain, tiny_base, "--data", f"ner={file}", needed=needed)


def test_relations_between_what_is_not_annotated(domain: Path, tiny_base: Path) -> None:
    file = data(domain.parent, GOOD, relations=[{"head": "D1", "label": "causes", "tail": "D6"}])
    refused(
        domain, tiny_base, "--data", f"ner={file}", needed=("mine.jsonl:2, relations[1]", "'D6' is annotated nowhere")
    )


def test_a_graph_with_a_cycle(domain: Path, tiny_base: Path) -> None:
    """It is found by the check and before anything is trained with it."""
    write_graph(domain / "ontology", (*CONCEPTS, *CYCLE), (), TYPES, RELATIONS)
    for needed in ("D7", "D8", "D9", "instead:"):
        fault(domainkit("graph", "check", str(domain / "ontology")), needed)
    refused(domain, tiny_base, needed=("concepts.tsv", "D7", "D8", "D9"))


def test_no_graph_of_that_name(domain: Path, tiny_base: Path) -> None:
    refused(domain, tiny_base, "--set", "graph=medicla", needed=("medicla", "instead:"))


@pytest.mark.parametrize(("format", "message"), [("pubtator", "notes.md:1"), ("word", "unknown format 'word'")])
def test_the_wrong_format(domain: Path, tiny_base: Path, format: str, message: str) -> None:
    (domain.parent / "notes.md").write_text("Aspirin helps.")
    more = ("--data", f"ner={domain.parent / 'notes.md'}", "--format", format)
    refused(domain, tiny_base, *more, needed=("notes.md", message))


def test_a_format_that_the_name_does_not_tell(domain: Path, tiny_base: Path) -> None:
    """CoNLL in .txt files: named, it is read and the report says so."""
    lines = "Aspirin B-Chemical\ncaused O\nnausea B-Disease\n. O\n\n".replace(" ", "\t")
    (domain.parent / "mine.txt").write_text("".join(lines.replace("Aspirin", f"Drug{i}") for i in range(60)))
    line = ["finetune", str(domain), "--base", str(tiny_base), "--out", str(domain.parent / "run"), "--set", "epochs=1"]
    line += ["--data", f"ner={domain.parent / 'mine.txt'}"]
    fault(domainkit(*line), "ner: no span is labelled")
    assert domainkit(*line, "--format", "conll").code == 0
    report = json.loads((domain.parent / "run" / "reports" / "ner.json").read_text())
    assert [source["format"] for source in report["data"].values()] == ["conll"]
    ended = domainkit("eval", str(domain), "--run", str(domain.parent / "run"), *line[-2:], "--format", "conll",
                      "--out", str(domain.parent / "again"))  # fmt: skip
    assert ended.code == 0
    assert json.loads((domain.parent / "again" / "ner.json").read_text())["examples"] == 60
