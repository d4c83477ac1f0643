"""Summaries: only they are learned, they are written as learned, and under the constraint they invent nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from domainkit.conceptscore import concept_scores, summary_passages
from domainkit.constrain import Naming
from domainkit.graph import ConceptGraph
from domainkit.kinds import Corpus, Prepared, Reader, summary
from domainkit.model.base import Base, load_base
from domainkit.model.top import Top, adapt
from domainkit.types import Example, UserError
from tests.kinds.scored import evaluate
from tests.kinds.test_contract import some_batches
from tests.test_constrain import LABELS, small_graph
from tests.tiny import make_base

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = 48


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """With a head of its own: where it is the embedding, the row of the tiny base's last token is zero."""
    return load_base(make_base(tmp_path_factory.mktemp("base"), tied=False), bits=32)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ConceptGraph:
    return small_graph(tmp_path_factory.mktemp("graph"))


def example(number: int, drug: str = "") -> Example:
    """An abstract after its title, which names a drug: one that the abstract does not name."""
    title = ("The first", "The second")[number % 2] + " case, lead."
    return Example(f"{title} He took {drug or ('aspirin', 'tin')[number % 2]} and recovered.", summary=title,
                   id=str(number))  # fmt: skip


def corpus(learned: Sequence[Example], held: Sequence[Example], **changes: Any) -> Corpus:
    given: dict[str, Sequence[Example]] = {"learn": learned, "test": held}
    made = Corpus("clinic", given, {"learn": "domain", "test": "domain"}, CONTEXT, 0,
                  splits={"learn": "train", "test": "test"})  # fmt: skip
    return replace(made, **changes)


def kind(**settings: Any) -> summary.Kind:
    return summary.Kind("title", summary.Settings(**{"cue": "T:", "max_tokens": 24, **settings}))


def reader_of(base: Base, top: Top, task: summary.Kind, graph: ConceptGraph | None = None) -> Reader:
    return Reader(top, base, lambda found: some_batches(base, found), CONTEXT, {task.name: task}, graph=graph)


def spelled(base: Base, ids: Sequence[int]) -> str:
    return str(base.tokenizer.decode(list(ids)))


DOCUMENTS = [example(i) for i in range(8)]


def test_only_the_summary_is_learned_and_its_text_is_without_it(base: Base) -> None:
    made = kind().prepare(corpus(DOCUMENTS[:6], DOCUMENTS[6:]), base)
    assert {s.group for s in made.train} == set("012345") and {s.group for s in made.test} == set("67")
    swapped = kind().prepare(corpus(DOCUMENTS[6:], DOCUMENTS[:6]), base)
    documents = {e.id: e for e in (*made.gold, *swapped.gold)}
    for s in (*made.train, *made.test):
        document = documents[s.group]
        assert document.summary not in document.text
        assert spelled(base, s.ids[1:]) == f"{document.text}\n\nT: {document.summary}{base.tokenizer.eos_token}"
        told = spelled(base, [i for i, tag in zip(s.ids, s.tags, strict=True) if tag])
        assert told == f" {document.summary}{base.tokenizer.eos_token}"
    assert kind().terms(made.test) == sum(sum(s.tags) for s in made.test)


def test_long_texts_and_summaries_are_cut_and_leave_room(base: Base) -> None:
    long = [Example("The drug. " * 100, summary="word " * 100, id=str(i)) for i in range(2)]
    for s in kind().prepare(corpus(long[:1], long[1:]), base).sequences:
        assert len(s.ids) == CONTEXT and sum(s.tags) == 24
        assert base.tokenizer.eos_token_id not in s.ids[1:]  # it does not end here
        assert spelled(base, s.ids[:-24]).endswith("\n\nT:")


def test_the_loss_is_that_of_the_summary(base: Base) -> None:
    task, top = kind(), adapt(base, {}, layers=2).eval()
    made = task.prepare(corpus(DOCUMENTS[:6], DOCUMENTS[6:]), base)
    (batch,) = some_batches(base, made.test)
    expected = []
    for s in made.test:
        logprobs = base.model(torch.tensor([s.ids])).logits[0].log_softmax(-1)
        expected.append(-sum(float(logprobs[i - 1, s.ids[i]]) for i, tag in enumerate(s.tags) if tag))
    assert task.predict(top, batch, ()) == pytest.approx(expected, rel=1e-4)
    assert task.loss(top, batch, ()).item() == pytest.approx(sum(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "documents", "wanted"),
    [
        ({"constrain": True}, DOCUMENTS, "title: the constraint needs to know the labels"),
        ({"constrain": True, "labels": LABELS}, DOCUMENTS, "title: the constraint needs a concept graph"),
        ({}, [Example("A text without a title.", id="1")], "no document with a summary is left to test on"),
        ({}, [Example("  ", summary="A title without a text.", id="1")], "no document with a summary is left"),
    ],
)
def test_faults_are_told(base: Base, settings: dict[str, Any], documents: list[Example], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        kind(**settings).prepare(corpus(documents, documents), base)


def test_what_is_learned_is_written_and_the_constraint_holds(base: Base, graph: ConceptGraph) -> None:
    task = kind(constrain=True, labels=LABELS)
    seen = [replace(e, id=f"again {e.id}") for e in DOCUMENTS]
    made = task.prepare(corpus(DOCUMENTS, seen, graph=graph), base)
    torch.manual_seed(0)
    top = fitted(adapt(base, {}, layers=2, rank=8), task, made, base)
    reader = reader_of(base, top, task, graph)
    outcome = evaluate(task, reader, made, 0)
    free, bound = outcome.baseline[summary.FREE], outcome.scores
    assert free["rougeL"].value > 0.9 and free["concept_recall"].value > 0.9
    assert free["invented_rate"].value > 0.9 and free["invented_documents"].value > 0.9
    assert bound["invented_rate"].value == bound["invented_documents"].value == 0.0
    assert bound["rougeL"].value > outcome.baseline[summary.BASE]["rougeL"].value
    assert bound["perplexity"].value < 0.5 * outcome.baseline[summary.BASE]["perplexity"].value
    assert {"lead sentence", "last sentence"} < set(outcome.baseline)
    assert [row[0] for row in outcome.tables[0].rows][-1] == "gold"
    assert any(mark.state == "spurious" for one in outcome.examples for mark in one.marks)

    naming = Naming.of(graph, LABELS)
    told = task.annotate(reader, DOCUMENTS)
    assert [e.text for e in told] == [e.text for e in DOCUMENTS]  # as it was, with its title
    assert all(e.summary and "\n" not in e.summary for e in told)
    without = [e.text.partition(". ")[2] for e in DOCUMENTS]
    assert not any(naming.invented(e.summary, naming.supported(t)) for e, t in zip(told, without, strict=True))
    lifted = kind(labels=LABELS).annotate(reader, DOCUMENTS)
    assert all("lead" in e.summary for e in lifted)
    assert task.annotate(reader, [Example(" "), DOCUMENTS[0], Example("")]) == [Example(" "), told[0], Example("")]
    named = kind(constrain=True, labels=LABELS).annotate(reader, [example(1, "lead")])  # its text names it
    assert "lead" in named[0].summary


def fitted(top: Top, task: summary.Kind, made: Prepared, base: Base) -> Top:
    optimizer = torch.optim.AdamW(list(top.trainable().values()), lr=1e-2)
    for _ in range(40):
        for batch in some_batches(base, made.train):
            loss = task.loss(top, batch, made.labels) / task.terms(s for _, s in batch.placed)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return top.eval()


def test_concept_figures(graph: ConceptGraph) -> None:
    naming = Naming.of(graph, LABELS)
    gold = [
        Example("Aspirin for NIDDM.", summary="Acetylsalicylic acid in type 2 diabetes", id="1"),
        Example("Lead poisoning.", summary="Plumbism", id="2"),
        Example("Nothing.", summary="No name", id="3"),
    ]
    summaries = ("Aspirin and hypertension", "A case of plumbism", "hypertension")
    told = [replace(e, summary=text) for e, text in zip(gold, summaries, strict=True)]
    found = {name: score.value for name, score in concept_scores(gold, told, naming, seed=0).items()}
    assert found == pytest.approx({"concept_recall": 2 / 3, "invented_rate": 2 / 4, "invented_documents": 2 / 3})
    assert all(s.value == 0 for s in concept_scores(gold[2:], gold[2:], naming, seed=0).values())
    first, *_, last = summary_passages(gold, {"model": told}, naming)
    assert [(first.text[m.start : m.end], m.state) for m in first.marks] == [
        ("Aspirin", "right"), ("hypertension", "spurious"),
    ]  # fmt: skip
    assert first.text == "gold: Acetylsalicylic acid in type 2 diabetes\nmodel: Aspirin and hypertension"
    assert [m.state for m in last.marks] == ["right"]
    assert summary_passages(gold, {"model": told}, None)[0].marks == ()
