"""Entities: windows that overlap, dictionaries beside, and every fault told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from domainkit.data.tokens import overlapping
from domainkit.graph import ConceptGraph
from domainkit.kinds import Corpus, Prepared, ner
from domainkit.model import bundle
from domainkit.model.base import Base, load_base
from domainkit.model.top import Top, adapt
from domainkit.types import Example, Span, UserError
from tests.kinds.scored import evaluate
from tests.kinds.test_contract import reader_of, some_batches
from tests.tiny import make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("Chemical", "Disease")
CONTEXT = 48


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, bits=32)


def example(number: int, repeats: int = 1) -> Example:
    """A document that names a drug and a disease in each sentence."""
    drug, disease = ("aspirin", "lithium")[number % 2], ("heart failure", "tremor")[number // 2 % 2]
    sentence = f"The patient {number} took {drug} for 12 weeks and had {disease}. "
    text, spans = sentence * repeats, list[Span]()
    for i in range(repeats):
        for name, label in ((drug, "Chemical"), (disease, "Disease")):
            start = i * len(sentence) + sentence.index(name)
            spans.append(Span(start, start + len(name), label, f"ID:{name}"))
    return Example(text, spans=tuple(spans), id=str(number))


def corpus(learned: Sequence[Example], held: Sequence[Example], **changes: Any) -> Corpus:
    given: dict[str, Sequence[Example]] = {"learn": learned, "test": held}
    made = Corpus("clinic", given, {"learn": "domain", "test": "domain"}, CONTEXT, 0,
                  splits={"learn": "train", "test": "test"})  # fmt: skip
    return replace(made, **changes)


def kind(**settings: Any) -> ner.Kind:
    return ner.Kind("ner", ner.Settings(**settings))


DOCUMENTS = [example(i, 1 + i % 3) for i in range(8)]


def test_sources_say_what_is_learned_and_what_is_tested(base: Base) -> None:
    made = kind(labels=LABELS).prepare(corpus(DOCUMENTS[:6], DOCUMENTS[6:]), base)
    assert {s.group for s in made.train} == set("012345") and {s.group for s in made.test} == set("67")
    assert made.labels == LABELS and made.gold == tuple(DOCUMENTS[6:])


def test_other_labels_are_left_out(base: Base) -> None:
    made = kind(labels=("Disease",)).prepare(corpus(DOCUMENTS[:6], DOCUMENTS[6:]), base)
    assert {span.label for e in made.gold for span in e.spans} == {"Disease"}
    assert max(tag for s in made.train for tag in s.tags) == 2


@pytest.mark.parametrize(
    ("settings", "documents", "wanted"),
    [
        (
            {"labels": ("Drug",)},
            DOCUMENTS,
            r"ner: no span is labelled Drug; instead: labels = \['Chemical', 'Disease'\]",
        ),
        ({}, [Example("No annotation at all.", id="1")], "ner: no span is annotated; instead: documents whose"),
    ],
)
def test_faults_are_told(base: Base, settings: dict[str, Any], documents: list[Example], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        kind(**settings).prepare(corpus(documents, documents), base)


def test_dictionaries_stand_beside(base: Base) -> None:
    made = kind(labels=LABELS).prepare(corpus(DOCUMENTS[:1], DOCUMENTS[1:], graph=ConceptGraph.load("medical")), base)
    seen: Any = made.rivals["known mentions"]
    told = {e.text[s.start : s.end] for e in seen for s in e.spans}
    assert told == {"aspirin", "heart failure"}  # those of the one document that is learned from
    graph: Any = made.rivals["dictionary"]
    assert {"lithium", "tremor"} <= {e.text[s.start : s.end].lower() for e in graph for s in e.spans}
    assert any(hint for s in made.train for hint in s.hints)


class Told(ner.Kind):
    """A kind whose tagger is always right."""

    def predict(self, top: Any, batch: Any, labels: Sequence[str]) -> list[tuple[int, ...]]:
        return [s.tags for _, s in batch.placed]


@pytest.mark.parametrize("repeats", [1, 2, 9, 40])
def test_right_tags_give_the_gold_spans_however_long_the_document(base: Base, repeats: int) -> None:
    """A hundred pages are many windows; none of their spans is lost, none told twice."""
    documents = [example(i, repeats) for i in range(2)]
    right = Told("ner", ner.Settings(labels=LABELS, overlap=16))
    made = right.prepare(corpus(DOCUMENTS, documents), base)
    assert len(made.test) >= repeats / 3
    outcome = evaluate(right, reader_of(base, adapt(base, {}, layers=2), right, made, CONTEXT), made, 0)
    assert outcome.scores["f1"].value == 1.0


@settings(max_examples=30)
@given(
    st.text(alphabet="ab 👩‍🔬שׁé.", min_size=1, max_size=200).filter(str.strip), st.integers(8, 40), st.integers(0, 40)
)
def test_windows_cover_every_token_and_share_some(text: str, context: int, overlap: int) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer())
    made = list(overlapping(Example(text, id="x"), tokenizer, 1, context=context, overlap=overlap))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = context - 1 - min(overlap, (context - 1) // 2)
    assert all(2 <= len(s.ids) <= context and len(s.ids) == len(s.offsets) for s in made)
    for i, s in enumerate(made):
        assert list(s.ids[1:]) == ids[i * step : i * step + context - 1]
    assert step * (len(made) - 1) + len(made[-1].ids) - 1 == len(ids)


def test_what_is_learned_is_found(base: Base) -> None:
    """Random weights know no words, so the documents are asked for again."""
    task = kind(labels=LABELS)
    made = task.prepare(corpus(DOCUMENTS, [replace(e, id=f"again {e.id}") for e in DOCUMENTS]), base)
    torch.manual_seed(0)
    top = adapt(base, bundle.heads_of({"ner": task.head(base, made)}), layers=2, rank=4)
    fitted(top, task, made, base)
    blank: Any = SimpleNamespace(
        link_document=lambda e: replace(e, spans=tuple(replace(s, concept=None) for s in e.spans))
    )
    outcome = evaluate(task, reader_of(base, top.eval(), task, made, CONTEXT, linker=blank), made, 0)
    assert outcome.scores["f1"].value > 0.95 and outcome.scores["link_accuracy"].value == 0
    assert outcome.examples and set(outcome.baseline) == {"known mentions"}
    assert {of["support"] for of in outcome.per_label.values()} == {sum(1 + i % 3 for i in range(8))}  # mentions


def fitted(top: Top, task: ner.Kind, made: Prepared, base: Base) -> None:
    optimizer = torch.optim.AdamW(list(top.trainable().values()), lr=5e-3)
    for _ in range(30):
        for batch in some_batches(base, made.train):
            loss = task.loss(top, batch, made.labels) / task.terms(s for _, s in batch.placed)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
