"""Scores of spans, links, relations and summaries: against cases made by hand, seqeval, nervaluate and rouge-score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate.evaluator import Evaluator
from rouge_score.rouge_scorer import RougeScorer
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from domainkit.align import align
from domainkit.score import Score
from domainkit.spanscore import link_accuracy, link_scores, relation_scores, span_scores, summary_scores
from domainkit.types import Example, Relation, Span

TEXT = "x" * 40
NOTHING = Score(0.0, 0.0, 0.0)
LABELS = "AB"
SCORES: list[Callable[..., Any]] = [span_scores, link_accuracy, link_scores, relation_scores, summary_scores]


def doc(*spans: tuple[Any, ...], group: str = "", **fields: Any) -> Example:
    """A document of 40 characters; each span as (start, end, label, concept)."""
    return Example(TEXT, spans=tuple(Span(*span) for span in spans), group=group, **fields)


def related(*relations: tuple[str, str, str], group: str = "") -> Example:
    return Example(TEXT, relations=tuple(Relation(*relation) for relation in relations), group=group)


def values(scores: dict[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def test_strict_exact_and_partial_of_a_hand_made_case() -> None:
    gold = [doc((0, 4, "A"), (6, 9, "A"), (12, 18, "B"), (20, 24, "B"))]
    predicted = [doc((0, 4, "A"), (6, 9, "B"), (13, 18, "B"), (30, 33, "A"), (35, 37, "A"))]
    scores, per_label = span_scores(gold, predicted, seed=0)  # right, label, bounds, spurious twice; one missed
    assert values(scores) == pytest.approx(
        {"precision": 1 / 5, "recall": 1 / 4, "f1": 2 / 9, "exact_f1": 4 / 9, "partial_f1": 2 * 2.5 / 9}
    )
    assert per_label == {
        "A": {"f1": pytest.approx(2 / 5), "precision": pytest.approx(1 / 3), "recall": 0.5, "support": 2},
        "B": {"f1": 0.0, "precision": 0.0, "recall": 0.0, "support": 2},
    }


def test_micro_sums_over_documents_and_does_not_average_them() -> None:
    gold = [doc((0, 1, "A")), doc(*((i, i + 1, "A") for i in range(9)))]
    scores, _ = span_scores(gold, [gold[0], doc()], seed=0)
    assert scores["recall"].value == pytest.approx(1 / 10)
    assert scores["precision"].value == 1


def test_a_span_predicted_twice_counts_once() -> None:
    scores, _ = span_scores([doc((0, 4, "A"))], [doc((0, 4, "A", "D1"), (0, 4, "A", "D2"))], seed=0)
    assert scores["precision"].value == scores["partial_f1"].value == 1


def test_one_prediction_answers_one_gold_span() -> None:
    scores, _ = span_scores([doc((0, 4, "A"), (5, 9, "A"))], [doc((0, 9, "A"))], seed=0)
    assert scores["partial_f1"].value == pytest.approx(2 * 0.5 / 3)


def test_spans_that_touch_do_not_overlap() -> None:
    assert align([Span(0, 4, "A")], [Span(4, 8, "A")]) == [(Span(0, 4, "A"), None), (None, Span(4, 8, "A"))]


def test_the_best_partner_is_found_whatever_the_order() -> None:
    outer, inner = Span(0, 9, "A"), Span(0, 4, "A")
    assert align([inner], [outer, inner]) == [(inner, inner), (None, outer)]
    other = replace(inner, label="B")
    assert align([other, inner], [inner]) == [(inner, inner), (other, None)]


@st.composite
def flat(draw: st.DrawFn) -> list[tuple[int, int, str]]:
    """Spans that do not overlap, in order."""
    bounds = draw(st.lists(st.integers(0, 30), unique=True, max_size=12).map(sorted))
    return [(a, b, draw(st.sampled_from(LABELS))) for a, b in zip(bounds[::2], bounds[1::2], strict=False)]


SPAN = st.tuples(st.integers(0, 20), st.integers(1, 9), st.sampled_from(LABELS)).map(
    lambda s: (s[0], s[0] + s[1], s[2])
)
DOCUMENTS = st.lists(st.tuples(flat(), flat()), min_size=1, max_size=5)
NESTED = st.tuples(st.lists(SPAN, unique=True, max_size=8), st.lists(SPAN, unique=True, max_size=8))


def nervaluated(documents: Sequence[tuple[list[tuple[int, int, str]], list[tuple[int, int, str]]]]) -> dict[str, Any]:
    """nervaluate's results; it counts the last character as part of a span."""
    sides = [
        [[{"label": label, "start": a, "end": b - 1} for a, b, label in pair[side]] for pair in documents]
        for side in (0, 1)
    ]
    found: dict[str, Any] = Evaluator(*sides, tags=list(LABELS), loader="dict").evaluate()
    return found


@settings(max_examples=150)
@given(DOCUMENTS)
def test_spans_agree_with_nervaluate(documents: list[tuple[list[Any], list[Any]]]) -> None:
    scores, per_label = span_scores([doc(*g) for g, _ in documents], [doc(*p) for _, p in documents], seed=0)
    found = nervaluated(documents)
    strict = found["overall"]["strict"]
    assert values(scores) == pytest.approx(
        {
            "precision": strict.precision,
            "recall": strict.recall,
            "f1": strict.f1,
            "exact_f1": found["overall"]["exact"].f1,
            "partial_f1": found["overall"]["partial"].f1,
        }
    )
    assert per_label == {
        label: pytest.approx({"f1": r.f1, "precision": r.precision, "recall": r.recall, "support": r.possible})
        for label, of in found["entities"].items()
        for r in [of["strict"]]
    }


@settings(max_examples=150)
@given(NESTED)
def test_nested_spans_agree_with_nervaluate_when_it_meets_the_equal_ones_first(pair: tuple[list[Any], ...]) -> None:
    gold, predicted = map(sorted, pair)
    scores, _ = span_scores([doc(*gold)], [doc(*predicted)], seed=0)
    bounds = [{(a, b) for a, b, _ in side} for side in (predicted, gold)]
    first = [
        sorted(side, key=lambda s: s[:2] not in other) for side, other in zip((gold, predicted), bounds, strict=True)
    ]
    found = nervaluated([(first[0], first[1])])["overall"]
    assert scores["exact_f1"].value == pytest.approx(found["exact"].f1)
    assert scores["partial_f1"].value == pytest.approx(found["partial"].f1)
    both, total = set(gold) & set(predicted), len(gold) + len(predicted)
    assert scores["f1"].value == pytest.approx(2 * len(both) / total if total else 0)
    assert scores["f1"].value <= scores["exact_f1"].value + 1e-12 <= scores["partial_f1"].value + 2e-12


def test_an_overlap_below_one_percent_of_gold_is_none() -> None:
    long = Example("x" * 300, spans=(Span(0, 200, "A"),))
    shared = {n: replace(long, spans=(Span(200 - n, 290, "A"),)) for n in (1, 2)}
    found = {n: span_scores([long], [other], seed=0)[0]["partial_f1"].value for n, other in shared.items()}
    assert found == {1: 0.0, 2: 0.5}
    theirs = nervaluated([([(0, 200, "A")], [(199, 290, "A")])])["overall"]["partial"].f1
    assert theirs == found[1]


@st.composite
def tags(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Two IOB2 sequences of one length."""
    size = draw(st.integers(1, 15))
    sides = []
    for _ in range(2):
        side: list[str] = []
        for tag in draw(st.lists(st.sampled_from(["O", "B-A", "B-B", "I"]), min_size=size, max_size=size)):
            before = side[-1] if side else "O"
            side.append(tag if tag != "I" else "O" if before == "O" else f"I-{before[2:]}")
        sides.append(side)
    return sides[0], sides[1]


def spelled(sequence: Sequence[str]) -> Example:
    """An example of one character per tag."""
    spans: list[Span] = []
    for i, tag in enumerate(sequence):
        if tag.startswith("B-"):
            spans.append(Span(i, i + 1, tag[2:]))
        elif tag.startswith("I-"):
            spans[-1] = replace(spans[-1], end=i + 1)
    return Example("x" * len(sequence), spans=tuple(spans))


@settings(max_examples=150)
@given(st.lists(tags(), min_size=1, max_size=5))
def test_spans_agree_with_seqeval(documents: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([pair[side] for pair in documents] for side in (0, 1))
    scores, per_label = span_scores([spelled(d) for d in gold], [spelled(d) for d in predicted], seed=0)
    if not per_label:
        assert values(scores) == dict.fromkeys(scores, 0.0)  # seqeval fails without a single span
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every undefined figure
        report = classification_report(gold, predicted, output_dict=True, mode="strict", scheme=IOB2, zero_division=0)
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    assert {name: scores[name].value for name in names} == pytest.approx(
        {name: report["micro avg"][theirs] for name, theirs in names.items()}
    )
    for label, of in per_label.items():
        assert of == pytest.approx({n: report[label][t] for n, t in (names | {"support": "support"}).items()})


LINKED = doc((0, 4, "A", "D1"), (5, 9, "A", "D2,D3"), (10, 14, "B"), (15, 19, "B", "C1"))


@pytest.mark.parametrize(
    ("concepts", "right"),
    [
        (("D1", "D2,D3", "C9", "C1"), 3),  # a gold mention without id does not count, whatever is said of it
        (("D1", "D3", None, "C1"), 3),  # one id of a composite mention is enough
        (("D1", "D2,D9", None, None), 1),  # but no other beside it
        (("D2", None, None, "C1"), 1),
        ((None, None, None, None), 0),
    ],
)
def test_link_accuracy_on_gold_spans(concepts: tuple[str | None, ...], right: int) -> None:
    predicted = replace(LINKED, spans=tuple(replace(s, concept=c) for s, c in zip(LINKED.spans, concepts, strict=True)))
    scores, per_label = link_accuracy([LINKED], [predicted], seed=0)
    assert scores["link_accuracy"].value == pytest.approx(right / 3)
    assert {label: (of["linked"], of["unlinked"]) for label, of in per_label.items()} == {"A": (2, 0), "B": (1, 1)}
    assert sum(of["link_accuracy"] * of["linked"] for of in per_label.values()) == pytest.approx(right)


def test_a_mention_that_is_not_predicted_is_not_linked() -> None:
    predicted = doc((0, 4, "A", "D1"), (5, 9, "B", "D2"), (15, 18, "B", "C1"))  # right, other label, other bounds
    assert link_accuracy([LINKED], [predicted], seed=0)[0]["link_accuracy"].value == pytest.approx(1 / 3)


def test_links_of_predicted_mentions() -> None:
    gold = [doc((0, 4, "A", "D1"), (5, 9, "A", "D1"), (10, 14, "B", "C1,C2"), (20, 22, "B"))]
    predicted = [doc((0, 4, "A", "D1"), (5, 8, "A", "D1"), (10, 14, "B", "C1"), (20, 22, "B", "C7"), (30, 31, "A"))]
    scores, per_label = link_scores(gold, predicted, seed=0)
    # (start, end, id): gold D1 D1 C1 C2, predicted D1 (D1) C1 (C7). Ids: gold D1 C1 C2, predicted D1 C1 C7.
    assert values(scores) == pytest.approx(
        {"link_precision": 1 / 2, "link_recall": 1 / 2, "link_f1": 1 / 2}
        | {"concept_precision": 2 / 3, "concept_recall": 2 / 3, "concept_f1": 2 / 3}
    )
    assert per_label["A"] == {"concept_f1": 1.0, "concept_precision": 1.0, "concept_recall": 1.0, "support": 1}
    assert per_label["B"] == {"concept_f1": 0.5, "concept_precision": 0.5, "concept_recall": 0.5, "support": 2}


def test_concepts_are_a_set_per_document() -> None:
    once, often = doc((0, 4, "A", "D1")), doc(*((i, i + 1, "A", "D1") for i in range(9)))
    scores, _ = link_scores([once, once], [often, doc()], seed=0)
    assert values(scores)["concept_precision"] == 1  # nine mentions of the first document say one thing
    assert values(scores)["concept_recall"] == 0.5  # and nothing of the second


def test_relations_are_directed_unless_said_otherwise() -> None:
    gold = [related(("C1", "CID", "D1"), ("G1", "Bind", "G2"))]
    predicted = [related(("D1", "CID", "C1"), ("G2", "Bind", "G1"))]
    assert relation_scores(gold, predicted, seed=0)[0]["f1"].value == 0
    scores, per_label = relation_scores(gold, predicted, seed=0, undirected={"Bind"})
    assert values(scores) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert {label: (of["f1"], of["support"]) for label, of in per_label.items()} == {"Bind": (1, 1), "CID": (0, 1)}


def test_both_directions_of_an_undirected_relation_are_one() -> None:
    both = related(("G1", "Bind", "G2"), ("G2", "Bind", "G1"))
    scores, per_label = relation_scores([related(("G1", "Bind", "G2"))], [both], seed=0, undirected={"Bind"})
    assert scores["precision"].value == per_label["Bind"]["precision"] == 1


def test_the_label_and_the_document_of_a_relation_count() -> None:
    fact = ("C1", "CID", "D1")
    assert relation_scores([related(fact)], [related(("C1", "Other", "D1"))], seed=0)[0]["f1"].value == 0
    moved = relation_scores([related(fact), related()], [related(), related(fact)], seed=0)
    assert values(moved[0]) == {"precision": 0, "recall": 0, "f1": 0}


def test_a_composite_argument_stands_for_each_of_its_ids() -> None:
    gold = [related(("C1", "CID", "D1"), ("C1", "CID", "D2"), ("C2", "CID", "D1"))]
    scores, _ = relation_scores(gold, [related(("C1", "CID", "D1,D2"))], seed=0)
    assert values(scores) == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 4 / 5})


FACT = st.tuples(st.sampled_from("abc"), st.sampled_from("RS"), st.sampled_from("abc"))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sets(FACT, max_size=6), st.sets(FACT, max_size=6)), min_size=1, max_size=6))
def test_relation_properties(documents: list[tuple[set[Any], set[Any]]]) -> None:
    gold, predicted = ([related(*sorted(pair[side])) for pair in documents] for side in (0, 1))
    scores, per_label = relation_scores(gold, predicted, seed=0)
    hits = sum(len(g & p) for g, p in documents)
    total = sum(len(g) + len(p) for g, p in documents)
    assert scores["f1"].value == pytest.approx(2 * hits / total if total else 0)
    swapped = relation_scores(predicted, gold, seed=0)[0]
    assert (swapped["precision"], swapped["recall"]) == (scores["recall"], scores["precision"])
    support = sum(of["support"] for of in per_label.values())
    assert support == sum(len(g) for g, _ in documents)


def test_rouge_is_the_mean_over_documents_with_words_stemmed() -> None:
    gold = [replace(doc(), summary="renal failures after ibuprofen"), replace(doc(), summary="the cat sat on the mat")]
    predicted = [replace(doc(), summary="Renal failure, ibuprofen"), replace(doc(), summary="on the mat the cat sat")]
    scores = summary_scores(gold, predicted, seed=0)
    assert values(scores) == pytest.approx(
        {"rouge1": (6 / 7 + 1) / 2, "rouge2": (2 / 5 + 4 / 5) / 2, "rougeL": (6 / 7 + 1 / 2) / 2}
    )


WORDS = st.lists(st.sampled_from(["renal", "failure", "failures", "was", "the"])).map(" ".join)


@settings(max_examples=25)
@given(st.lists(st.tuples(WORDS, WORDS)))
def test_rouge_agrees_with_the_library(texts: list[tuple[str, str]]) -> None:
    texts.append(("acute renal failure", "renal failure"))
    gold, predicted = ([replace(doc(), summary=pair[side]) for pair in texts] for side in (0, 1))
    scores = summary_scores(gold, predicted, seed=0)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = [scorer.score(*pair) for pair in texts if pair[0]]
    for name, score in scores.items():
        assert score.value == pytest.approx(sum(one[name].fmeasure for one in found) / len(found))


def test_without_a_gold_summary_there_is_no_rouge() -> None:
    with pytest.raises(ValueError, match="no example has a gold summary"):
        summary_scores([doc()], [replace(doc(), summary="said")], seed=0)
    scored = replace(doc(), summary="said")
    alone = summary_scores([scored], [scored], seed=0)
    assert summary_scores([scored, doc()], [scored, scored], seed=0) == alone
    assert summary_scores([scored], [doc()], seed=0) == dict.fromkeys(alone, NOTHING)


def everything(i: int, right: bool) -> tuple[Example, Example]:
    """A gold document and a prediction that is wholly right or wholly wrong."""
    gold = Example(
        TEXT,
        spans=(Span(i, i + 3, "A", f"D{i}"),),
        relations=(Relation(f"D{i}", "CID", "D"),),
        summary=f"word{i} follows",
        id=str(i),
    )
    wrong = replace(
        gold, spans=(Span(39, 40, "B", "X"),), relations=(Relation("X", "CID", "X"),), summary="another thing"
    )
    return gold, gold if right else wrong


def scored(score: Callable[..., Any], *sides: Sequence[Example], seed: int = 0) -> dict[str, Score]:
    found = score(*sides, seed=seed)
    return dict(found if isinstance(found, dict) else found[0])


@pytest.mark.parametrize("score", SCORES)
def test_the_seed_alone_decides_the_interval(score: Callable[..., Any]) -> None:
    gold, predicted = zip(*(everything(i, right=i % 3 > 0) for i in range(30)), strict=True)
    first, *others = (scored(score, gold, predicted, seed=seed) for seed in range(8))
    assert scored(score, gold, predicted, seed=0) == first
    assert all(values(other) == values(first) for other in others)
    assert any(other != first for other in others)
    for found in first.values():
        assert 0 < found.low < found.value < found.high < 1


@pytest.mark.parametrize("score", SCORES)
def test_examples_of_one_document_are_drawn_together(score: Callable[..., Any]) -> None:
    gold, predicted = zip(*(everything(i, right=i >= 15) for i in range(30)), strict=True)
    together = [[replace(one, group=str(i // 15)) for i, one in enumerate(side)] for side in (gold, predicted)]
    ids = [[replace(one, id=str(i // 15)) for i, one in enumerate(side)] for side in (gold, predicted)]
    unnamed = [[replace(one, id="") for one in side] for side in (gold, predicted)]
    assert scored(score, *together) == scored(score, *ids)
    assert scored(score, *unnamed) == scored(score, gold, predicted)
    for name, found in scored(score, *together).items():  # two documents, one right and one wrong
        assert (found.low, found.high) == (0, 1)
        assert scored(score, gold, predicted)[name].value == pytest.approx(found.value)


@pytest.mark.parametrize("score", SCORES)
def test_right_predictions_score_1_and_misaligned_ones_are_refused(score: Callable[..., Any]) -> None:
    gold = [everything(i, right=True)[0] for i in range(3)]
    assert scored(score, gold, gold) == dict.fromkeys(scored(score, gold, gold), Score(1, 1, 1))
    with pytest.raises(ValueError, match="3 gold and 2 predicted"):
        score(gold, gold[:2], seed=0)
    with pytest.raises(ValueError, match=r"example 1 \('1'\) has another text"):
        score(gold, [gold[0], replace(gold[1], text="y"), gold[2]], seed=0)


@pytest.mark.parametrize("score", SCORES[:-1])
def test_nothing_gold_nothing_predicted_and_empty_documents(score: Callable[..., Any]) -> None:
    full, empty = everything(0, right=True)[0], Example("")
    blank = replace(full, spans=(), relations=())
    for gold, predicted in ((full, blank), (blank, full), (blank, blank), (empty, empty)):
        found = scored(score, [gold], [predicted])
        assert found == dict.fromkeys(found, NOTHING)
    assert scored(score, [full, empty], [full, empty]) == scored(score, [full], [full])
    with pytest.raises(ValueError, match="at least one document"):
        score([], [], seed=0)


def test_a_document_without_predictions_does_not_lower_precision() -> None:
    right = everything(0, right=True)[0]
    silent = replace(everything(1, right=True)[0], spans=())
    assert span_scores([right, silent], [right, silent], seed=0)[0]["precision"] == Score(1, 1, 1)
