"""spaCy's DocBin: entities, span groups, categories and extensions; damaged files and a missing spaCy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.data.overlaps import overlaps
from domainkit.data.read import read
from domainkit.data.row import Allowed
from domainkit.types import Relation, Span
from tests.data.annotated import LABELS, fault

spacy = pytest.importorskip("spacy")
tokens = pytest.importorskip("spacy.tokens")

VOCAB = spacy.blank("xx").vocab
WORDS = ("😀", "aspirin", "שָׁלוֹם", "causes", "nausea")
TEXT = "😀 aspirin שָׁלוֹם causes nausea "


def docbin(folder: Path, *docs: Any, name: str = "a.spacy") -> Path:
    tokens.DocBin(store_user_data=True, docs=docs).to_disk(folder / name)
    return folder / name


def doc_of(*ents: tuple[int, int, str, str]) -> Any:
    """The words with entities (first word, last word + 1, label, concept id)."""
    doc = tokens.Doc(VOCAB, words=list(WORDS))
    doc.ents = [tokens.Span(doc, a, b, label=label, kb_id=concept) for a, b, label, concept in ents]
    return doc


def test_everything_an_example_holds(tmp_path: Path) -> None:
    doc = doc_of((1, 2, "Chemical", "D1"), (4, 5, "Disease", "NIL"))
    doc.spans["sc"] = [tokens.Span(doc, 1, 2, label="Chemical"), tokens.Span(doc, 0, 5, label="Event", kb_id="E1")]
    doc.cats = {"adverse": 1.0, "other": 0.0}
    relations = [("D1", "CID", "E1", 0.5), ("E1", "in", "25:31")]
    for name, value in (("relations", relations), ("summary", "s"), ("id", 7), ("group", "g")):
        doc.user_data[("._.", name, None, None)] = value
    (one,) = read(docbin(tmp_path, doc), language="en")
    assert one.text == TEXT and TEXT[25:31] == "nausea"
    assert one.spans == (Span(0, 31, "Event", "E1"), Span(2, 9, "Chemical", "D1"), Span(25, 31, "Disease"))
    assert one.relations == (Relation("D1", "CID", "E1", 0.5), Relation("E1", "in", "25:31"))
    assert (one.label, one.summary, one.id, one.group, one.language) == ("adverse", "s", "7", "g", "en")
    assert overlaps([one]).nested == 2


def test_plain_documents(tmp_path: Path) -> None:
    assert [(e.id, e.text, e.spans, e.label) for e in read(docbin(tmp_path, doc_of(), doc_of()))] == [
        ("a.spacy:1", TEXT, (), ""), ("a.spacy:2", TEXT, (), ""),
    ]  # fmt: skip


SPACED = st.tuples(st.sampled_from([*WORDS, "👩‍⚕️", "é", "\u2028", "银行"]), st.booleans())


@given(st.lists(SPACED, min_size=1, max_size=12), st.data())
def test_offsets_are_right_in_every_script(
    tmp_path_factory: pytest.TempPathFactory, words: list[tuple[str, bool]], data: Any
) -> None:
    doc = tokens.Doc(VOCAB, words=[word for word, _ in words], spaces=[space for _, space in words])
    bounds = st.tuples(st.integers(0, len(words)), st.integers(0, len(words))).map(sorted).filter(lambda b: b[0] < b[1])
    keys = data.draw(st.lists(st.tuples(bounds.map(tuple), st.sampled_from(LABELS)), max_size=5, unique=True))
    doc.spans["sc"] = [tokens.Span(doc, a, b, label=label) for (a, b), label in keys]
    said = sorted((doc[a:b].text, label) for (a, b), label in keys)
    if not doc.text.strip():
        return
    (one,) = read(docbin(tmp_path_factory.getbasetemp(), doc, name="every.spacy"))
    assert one.text == doc.text
    assert sorted((one.text[s.start : s.end], s.label) for s in one.spans) == said


def test_bad_documents(tmp_path: Path) -> None:
    torn = doc_of((1, 2, "Chemical", "D1"))
    torn.user_data[("._.", "relations", None, None)] = [("D1", "CID", "D9")]
    many = doc_of()
    many.cats = {"a": 1.0, "b": 1.0}
    path = docbin(tmp_path, torn, many, tokens.Doc(VOCAB, words=[" "]), doc_of((0, 1, "Gene", "")))
    message = fault(path, allowed=Allowed({"Chemical"}))
    assert f"{path}:1, relations[1]: relation argument 'D9' is annotated nowhere" in message
    assert f"{path}:2: 2 categories hold, ['a', 'b']" in message
    assert f"{path}:3: the document is empty" in message
    assert f"{path}:4, spans[1]: unknown label 'Gene'" in message and "4 faults" in message


@pytest.mark.parametrize("odd", [5, "text", [5], [("D1",)], {"a": 1}])
def test_odd_extensions(tmp_path: Path, odd: Any) -> None:
    doc = doc_of((1, 2, "Chemical", "D1"))
    doc.user_data[("._.", "relations", None, None)] = odd
    assert f"{tmp_path}/a.spacy:1" in fault(docbin(tmp_path, doc))


def test_damaged_files(tmp_path: Path) -> None:
    path = docbin(tmp_path, doc_of())
    whole = path.read_bytes()
    for data in (whole[:-9], b"not a DocBin", whole[:3]):
        path.write_bytes(data)
        assert f"{path}: not a whole DocBin" in fault(path) and "faults" not in fault(path)
    path.write_bytes(b"")
    assert "the file is empty" in fault(path)
    assert "the file holds no document" in fault(docbin(tmp_path))


def test_without_spacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = docbin(tmp_path, doc_of())
    monkeypatch.setitem(sys.modules, "spacy.tokens", None)
    assert "pip install 'domainkit[spacy]'" in fault(path)
