"""The spaCy component: what the run finds is what a Doc holds, one by one, in batches, and after saving."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from domainkit.data.read import read
from domainkit.kinds import ner
from domainkit.run import Run
from domainkit.types import Example, Relation, Span, UserError
from tests.clinic import Clinic, by_dictionary, make_clinic, note

spacy = pytest.importorskip("spacy")
pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "domainkit_medical"
TEXTS = [note(i, 1 + i % 2).text for i in range(60, 68)]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("clinic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        yield make_clinic(folder)


@pytest.fixture(scope="module")
def nlp(clinic: Clinic) -> Any:
    made = spacy.blank("en")
    made.add_pipe(NAME, config={"run": str(clinic.run)})
    return made


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ner.Kind, "predict", by_dictionary)


def found_in(doc: Any) -> list[tuple[int, int, str, str]]:
    return [(ent.start_char, ent.end_char, ent.label_, ent.kb_id_) for ent in doc.ents]


@pytest.mark.usefixtures("dictionary")
def test_a_doc_holds_what_the_run_finds(nlp: Any) -> None:
    for number in range(60, 68):
        one = note(number)
        doc = nlp(one.text)
        assert found_in(doc) == [(s.start, s.end, s.label, s.concept) for s in one.spans]
        (told,) = nlp.get_pipe(NAME).run.extract([one.text])
        assert list(doc._.relations) == [(r.head, r.label, r.tail, r.score) for r in told.relations]


def test_batches_give_the_same_in_order(nlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Run.extract

    def extract(run: Run, texts: Sequence[str], **more: Any) -> list[Example]:
        sizes.append(len(texts))
        return plain(run, texts, **more)

    monkeypatch.setattr(Run, "extract", extract)
    docs = list(nlp.pipe([*TEXTS, ""], batch_size=4))
    assert sizes == [4, 4, 1] and [doc.text for doc in docs] == [*TEXTS, ""]
    assert [found_in(doc) for doc in docs] == [found_in(nlp(text)) for text in [*TEXTS, ""]]


def test_a_stream_is_not_held(nlp: Any) -> None:
    taken: list[int] = []

    def stream() -> Iterator[str]:
        for i, text in enumerate(TEXTS):
            taken.append(i)
            yield text

    next(iter(nlp.pipe(stream(), batch_size=2)))
    assert len(taken) <= 4


class Fixed:
    """A run that always finds the same."""

    def __init__(self, *spans: Span, relations: tuple[Relation, ...] = ()) -> None:
        self.found = Example("", spans, relations)

    def extract(self, texts: Sequence[str]) -> list[Example]:
        return [replace(self.found, text=text) for text in texts]


@pytest.mark.parametrize(
    ("text", "found", "entity"),
    [
        ("👩‍⚕️ took aspirin.", "aspirin", "aspirin"),
        ("שָׁלוֹם aspirin", "aspirin", "aspirin"),
        ("no aspirinlike effect", "aspirin", "aspirinlike"),  # a token holds more than the mention
    ],
)
def test_entities_end_where_tokens_do(
    nlp: Any, monkeypatch: pytest.MonkeyPatch, text: str, found: str, entity: str
) -> None:
    start = text.index(found)
    monkeypatch.setattr(nlp.get_pipe(NAME), "run", Fixed(Span(start, start + len(found), "Chemical", "D1,D2")))
    doc = nlp(text)
    assert [(ent.text, ent.label_, ent.kb_id_) for ent in doc.ents] == [(entity, "Chemical", "D1,D2")]


def test_of_entities_that_overlap_the_longest_is_kept(nlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Fixed(Span(0, 5, "Disease", "D1"), Span(0, 13, "Disease", "D2"), Span(6, 24, "Disease", "D3"))
    monkeypatch.setattr(nlp.get_pipe(NAME), "run", run)
    assert found_in(nlp("heart failures acute now")) == [(0, 5, "Disease", "D1"), (6, 24, "Disease", "D3")]


def test_a_docbin_keeps_all_of_it(nlp: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And `--data` reads it again."""
    spans = (Span(0, 7, "Chemical", "D1"), Span(12, 18, "Disease", "D4"))
    relations = (Relation("D1", "causes", "D4", 0.5),)
    monkeypatch.setattr(nlp.get_pipe(NAME), "run", Fixed(*spans, relations=relations))
    docs = [nlp("aspirin and tremor")]
    assert docs[0]._.relations[0].tail == "D4"
    spacy.tokens.DocBin(store_user_data=True, docs=docs).to_disk(tmp_path / "a.spacy")
    (one,) = read(tmp_path / "a.spacy")
    assert (one.spans, one.relations) == (spans, relations)


def test_a_saved_pipeline_loads_in_another_process(nlp: Any, clinic: Clinic, tmp_path: Path) -> None:
    """Through the entry point: nobody imports domainkit."""
    nlp.to_disk(tmp_path / "pipeline")
    assert nlp.config["components"][NAME] == {"factory": NAME, "run": str(clinic.run), "base": None}
    code = (
        "import spacy; doc = spacy.load('pipeline')(open('text').read()); "
        "print([(e.start_char, e.end_char, e.label_, e.kb_id_) for e in doc.ents])"
    )
    (tmp_path / "text").write_text(TEXTS[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(found_in(nlp(TEXTS[1])))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run here"):
        spacy.blank("en").add_pipe(NAME, config={"run": str(tmp_path)})
