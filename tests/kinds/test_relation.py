"""Relations: the type table rules, windows are joined, and every fault told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from domainkit.graph import ConceptGraph
from domainkit.kinds import Corpus, Prepared, Reader, relation
from domainkit.model import bundle
from domainkit.model.base import Base, load_base
from domainkit.model.batch import Batch
from domainkit.model.top import Top, adapt
from domainkit.types import Example, Relation, Span, UserError
from tests.kinds.scored import evaluate
from tests.kinds.test_contract import reader_of, some_batches

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT = 64
NAMES = {"CID": "causes"}
LABELS = ("entity:Chemical", "entity:Disease", "relation:CID")
CONCEPTS = {
    "aspirin": ("Chemical", "D001241"), "lithium": ("Chemical", "D008094"), "tremor": ("Disease", "D014202"),
    "ataxia": ("Disease", "D001259"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, bits=32)


@pytest.fixture(scope="module")
def graph() -> ConceptGraph:
    return ConceptGraph.load("medical")


def document(number: int, text: str, *relations: tuple[str, str]) -> Example:
    """The words of CONCEPTS are its entities; `relations` link two of the words."""
    found = re.finditer("|".join(CONCEPTS), text)
    spans = tuple(Span(m.start(), m.end(), *CONCEPTS[m[0]]) for m in found)
    told = tuple(Relation(CONCEPTS[head][1], "CID", CONCEPTS[tail][1]) for head, tail in relations)
    return Example(text, spans, told, id=str(number))


def induced(number: int) -> Example:
    """One drug brings about what the other is given for."""
    drug, other = ("aspirin", "lithium")[:: (1, -1)[number % 2]]
    harm, ill = ("tremor", "ataxia")[:: (1, -1)[number // 2 % 2]]
    return document(number, f"The patient took {drug} and got {harm}. We gave {other} for {ill}.", (drug, harm))


DOCUMENTS = [induced(i) for i in range(8)]


def corpus(learned: Sequence[Example], held: Sequence[Example], **changes: Any) -> Corpus:
    given: dict[str, Sequence[Example]] = {"learn": learned, "test": held}
    made = Corpus("clinic", given, {"learn": "domain", "test": "domain"}, CONTEXT, 0,
                  splits={"learn": "train", "test": "test"})  # fmt: skip
    return replace(made, **changes)


def kind(**settings: Any) -> relation.Kind:
    return relation.Kind("relation", relation.Settings(**settings))


def fresh(base: Base, task: relation.Kind, made: Prepared) -> Top:
    torch.manual_seed(0)
    return adapt(base, bundle.heads_of({"relation": task.head(base, made)}), layers=2, rank=4)


def fitted(top: Top, task: relation.Kind, made: Prepared, base: Base, times: int = 30) -> Top:
    optimizer = torch.optim.AdamW(list(top.trainable().values()), lr=3e-3)
    for _ in range(times):
        for batch in some_batches(base, made.train):
            loss = task.loss(top, batch, made.labels) / task.terms(s for _, s in batch.placed)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return top.eval()


def reader(base: Base, top: Top, task: Any, made: Prepared, graph: ConceptGraph | None = None) -> Reader:
    return reader_of(base, top, task, made, CONTEXT, graph=graph)


def triples(example: Example) -> set[tuple[str, str, str]]:
    return {(r.head, r.label, r.tail) for r in example.relations}


@pytest.mark.parametrize("adapted", [True, False])
def test_what_is_learned_is_told_and_nothing_that_cannot_be(base: Base, graph: ConceptGraph, adapted: bool) -> None:
    """Random weights know no words, so the documents are asked for again."""
    task = kind(names=NAMES, adapted=adapted)
    made = task.prepare(corpus(DOCUMENTS, [replace(e, id=f"again {e.id}") for e in DOCUMENTS], graph=graph), base)
    assert made.labels == LABELS and len(made.train) == len(made.test) == 8
    assert task.terms(made.train) == 8 * 4  # chemicals by diseases, one way
    top = fitted(fresh(base, task, made), task, made, base)
    outcome = evaluate(task, reader(base, top, task, made, graph), made, 0)
    assert outcome.scores["f1"].value > 0.9 and set(outcome.per_label) == {"CID"}
    assert set(outcome.baseline) == {"every pair", "pairs in one sentence"}
    assert outcome.baseline["pairs in one sentence"]["f1"].value == pytest.approx(2 / 3)
    (table,) = outcome.tables
    on, off = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (on["mask"], off["mask"], on["not allowed"]) == ("on", "off", 0)


@pytest.mark.parametrize("adapted", [True, False])
def test_the_adapter_learns_from_relations_only_where_they_read_it(base: Base, adapted: bool) -> None:
    task = kind(adapted=adapted)
    made = task.prepare(corpus(DOCUMENTS, DOCUMENTS), base)
    top = fresh(base, task, made)
    for batch in some_batches(base, made.train):
        task.loss(top, batch, made.labels).backward()
    taught = any(value.grad is not None for name, value in top.trainable().items() if "lora" in name)
    assert taught == adapted


class Sure(relation.Kind):
    """A kind whose head says yes to everything."""

    def _head(self, top: Top) -> Any:
        head: Any = super()._head(top)
        for reader in head.readers:
            torch.nn.init.zeros_(reader.out.weight)
            reader.out.bias.data = torch.tensor([-9.0, *[9.0] * (len(reader.out.bias) - 1)])
            torch.nn.init.zeros_(reader.plain.weight)
        return head


def test_an_impossible_triple_is_never_told_with_the_mask_on(base: Base, graph: ConceptGraph) -> None:
    task = Sure("relation", relation.Settings(names=NAMES))
    made = task.prepare(corpus(DOCUMENTS, DOCUMENTS, graph=graph), base)
    top = fresh(base, task, made).eval()
    found = task.annotate(reader(base, top, task, made, graph), DOCUMENTS)
    every = {(c, "CID", d) for c in ("D001241", "D008094") for d in ("D014202", "D001259")}
    assert all(triples(e) == every for e in found)
    table = evaluate(task, reader(base, top, task, made, graph), made, 0).tables[0]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(r["mask"], r["told"], r["not allowed"]) for r in rows] == [("on", 32, 0), ("off", 96, 64)]


@pytest.mark.parametrize("specific", [True, False])
def test_no_general_disease_is_told_beside_its_kind_where_that_is_asked(
    base: Base, graph: ConceptGraph, specific: bool
) -> None:
    text = "Too much aspirin: heart disease, then infarction."
    spans = [Span(9, 16, "Chemical", "D001241"), Span(18, 31, "Disease", "D006331"), Span(38, 48, "Disease", "D009203")]
    told = (Relation("D001241", "CID", "D009203"),)
    task = Sure("relation", relation.Settings(names=NAMES, specific=specific))
    example = Example(text, tuple(spans), told, id="heart")
    made = task.prepare(corpus([example], [example], graph=graph), base)
    top = fresh(base, task, made).eval()
    (found,) = task.annotate(reader(base, top, task, made, graph), [example])
    assert {r.tail for r in found.relations} == {"D009203"} | (set() if specific else {"D006331"})


def test_without_the_mask_everything_may_be_told(base: Base, graph: ConceptGraph) -> None:
    task = Sure("relation", relation.Settings(mask=False))
    made = task.prepare(corpus(DOCUMENTS, DOCUMENTS, graph=graph), base)
    assert task.terms(made.train) == 8 * 12
    found = task.annotate(reader(base, fresh(base, task, made).eval(), task, made, graph), DOCUMENTS)
    assert all(len(e.relations) == 12 for e in found)


def test_gold_against_the_table_is_listed_and_not_learned(base: Base, graph: ConceptGraph) -> None:
    wrong = document(9, "A tremor after aspirin.", ("tremor", "aspirin"), ("aspirin", "tremor"))
    made = kind(names=NAMES).prepare(corpus([*DOCUMENTS, wrong], DOCUMENTS, graph=graph), base)
    (table,) = [t for t in made.tables if t.title == relation.OUTSIDE]
    assert table.rows == (("learned from", "9", "D014202", "CID", "D001241", "Disease → Chemical"),)
    learned: Any = made.train[-1]
    assert learned.group == "9" and learned.pairs.gold.tolist() == [[True]]
    free = kind(names=NAMES, mask=False).prepare(corpus([*DOCUMENTS, wrong], DOCUMENTS, graph=graph), base)
    learned = free.train[-1]
    assert sorted(learned.pairs.gold[:, 0]) == [True, True]
    assert not [t for t in free.tables if t.title == relation.OUTSIDE]


def test_no_gold_against_the_table_is_said_too(base: Base, graph: ConceptGraph) -> None:
    made = kind(names=NAMES).prepare(corpus(DOCUMENTS, DOCUMENTS, graph=graph), base)
    mask, table = made.tables[1:]
    assert mask.rows == (("CID", "Chemical → Disease"),)
    assert table.title == relation.OUTSIDE and table.rows[0][0] == "none"


class Told(relation.Kind):
    """A kind whose head is always right, and surer in every window of a document."""

    seen = 0

    def _told(self, top: Top, batch: Batch, labels: Sequence[str], *, masked: bool) -> list[tuple[Relation, ...]]:
        found = []
        for _, s in batch.placed:
            pairs: Any = s.pairs  # type: ignore[attr-defined]
            self.seen += 1
            found.append(tuple(
                Relation(pairs.names[pairs.heads[i]], "CID", pairs.names[pairs.tails[i]], 0.5 + self.seen / 1000)
                for i in pairs.gold[:, 0].nonzero()[0]
            ))  # fmt: skip
        return found


@pytest.mark.parametrize("repeats", [1, 3, 40])
def test_a_long_document_is_read_in_windows_and_each_relation_told_once(base: Base, repeats: int) -> None:
    one = induced(0)
    text = " ".join([one.text] * repeats)
    long = replace(document(1, text), relations=one.relations)
    task = Told("relation", relation.Settings(overlap=16))
    made = task.prepare(corpus(DOCUMENTS, [long, induced(3)]), base)
    assert len(made.test) >= repeats / 3 + 1
    found = task.annotate(reader(base, fresh(base, task, made), task, made), [long, induced(3)])
    assert [triples(e) for e in found] == [triples(long), triples(induced(3))]
    assert found[0].relations[0].score == pytest.approx(0.5 + (task.seen - 1) / 1000)  # of the surest window
    assert found[0].spans == long.spans and found[0].text == text


def test_concepts_too_far_apart_are_not_asked_for(base: Base) -> None:
    far = document(1, "Much lithium. " + "We saw nothing of the kind then. " * 40 + "A tremor.", ("lithium", "tremor"))
    made = kind().prepare(corpus(DOCUMENTS, [far]), base)
    (table,) = [t for t in made.tables if t.title == "Annotation"]
    assert dict(zip(table.columns, table.rows[1], strict=True)) == {
        "documents": "held out", "count": 1, "relations": 1, "pairs asked for": 0, "related": 0,
    }  # fmt: skip


def test_mentions_without_a_concept_and_documents_without_pairs(base: Base, graph: ConceptGraph) -> None:
    task = Sure("relation", relation.Settings(names=NAMES))
    made = task.prepare(corpus(DOCUMENTS, DOCUMENTS, graph=graph), base)
    unlinked = replace(induced(0), spans=tuple(replace(s, concept=None) for s in induced(0).spans))
    others = [document(1, "Only lithium."), Example("Nothing.", id="2"), Example("", id="3"), induced(1)]
    found = task.annotate(reader(base, fresh(base, task, made).eval(), task, made, graph), [unlinked, *others])
    spots = {f"{s.start}:{s.end}": s.label for s in unlinked.spans}
    assert {(spots[r.head], spots[r.tail]) for r in found[0].relations} == {("Chemical", "Disease")}
    assert [len(e.relations) for e in found] == [4, 0, 0, 0, 4]


def test_direction_counts_only_where_it_is_said(base: Base) -> None:
    task = Sure("relation", relation.Settings(directed=False))
    backward = [replace(e, relations=tuple(Relation(r.tail, r.label, r.head) for r in e.relations)) for e in DOCUMENTS]
    made = task.prepare(corpus(DOCUMENTS, backward), base)
    assert task.terms(made.train) == 8 * 6
    outcome = evaluate(task, reader(base, fresh(base, task, made).eval(), task, made), made, 0)
    assert outcome.scores["recall"].value == 1.0 and not outcome.tables


class Finder:
    """An entity task that finds what CONCEPTS name, but for lithium."""

    __module__ = "domainkit.kinds.ner"

    def annotate(self, reader: Reader, examples: Sequence[Example]) -> list[Example]:
        found = [document(0, e.text).spans for e in examples]
        return [
            replace(e, spans=tuple(s for s in spans if s.concept != "D008094"))
            for e, spans in zip(examples, found, strict=True)
        ]


def test_end_to_end_starts_from_the_bare_text(base: Base, graph: ConceptGraph) -> None:
    task = Sure("relation", relation.Settings(names=NAMES))
    made = task.prepare(corpus(DOCUMENTS, DOCUMENTS, graph=graph), base)
    tasks: Any = {"ner": Finder(), "relation": task}
    both = replace(reader(base, fresh(base, task, made).eval(), task, made, graph),
                   kinds=tasks)  # fmt: skip
    outcome = evaluate(task, both, made, 0)
    assert outcome.scores["recall"].value == 1.0 and outcome.scores["end_to_end_recall"].value == 0.5
    assert [row[:2] for row in outcome.tables[0].rows] == [
        ("gold", "on"), ("gold", "off"), ("found", "on"), ("found", "off"),
    ]  # fmt: skip


def test_a_finished_run_needs_its_weights_and_labels_alone(base: Base, graph: ConceptGraph) -> None:
    task = kind(names=NAMES)
    made = task.prepare(corpus(DOCUMENTS, DOCUMENTS, graph=graph), base)
    top = fresh(base, task, made).eval()
    again = adapt(
        base, bundle.heads_of({"relation": task.head(base, Prepared((), (), labels=LABELS))}), layers=2, rank=4
    )
    again.load_state_dict(top.state_dict())
    told = [task.annotate(reader(base, one.eval(), task, made, graph), DOCUMENTS) for one in (top, again)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("settings", "documents", "wanted"),
    [
        ({"labels": ("GID",)}, DOCUMENTS, r"relation: no relation is labelled GID; instead: labels = \['CID'\]"),
        ({}, [Example("No annotation at all.", id="1")], "relation: no relation is annotated; instead: documents"),
        ({"names": {"CID": "brings"}}, DOCUMENTS, "relation: names: the graph's type table does not know 'brings'"),
        (
            {"entities": ("Chemical",), "names": NAMES},
            DOCUMENTS,
            "relation: no two concepts that may be related stand together",
        ),
    ],
)
def test_faults_are_told(
    base: Base, graph: ConceptGraph, settings: dict[str, Any], documents: list[Example], wanted: str
) -> None:
    with pytest.raises(UserError, match=wanted):
        kind(**settings).prepare(corpus(documents, documents, graph=graph), base)
