"""Questions about terms: cut right, answered by rows, never learned where they should not be, judged rightly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from domainkit.data.mix import split
from domainkit.glossary import Term
from domainkit.kinds import Corpus, Prepared, Reader, terms
from domainkit.model import bundle
from domainkit.model.base import Base, load_base
from domainkit.model.lexicon import teach
from domainkit.model.top import Top, adapt
from domainkit.nets.translate import Translator
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens
from tests import pipelines
from tests.kinds.scored import evaluate
from tests.kinds.test_contract import GLOSSARY, SOURCES, batch_of, corpus
from tests.tiny import make_base

pytestmark = pytest.mark.usefixtures("one_thread")

HELD = 0.4  # share of the terms never learned
REST = "其余文字各不相同而且足够长以便留下"  # a document shorter than 20 characters is dropped


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    own = load_base(tiny_base, bits=32)
    return teach(own, GLOSSARY, [], [], tokens=0, seed=0, cache=tmp_path_factory.mktemp("rows")).base


def kind(**settings: Any) -> terms.Kind:
    return terms.Kind("ask", terms.Settings(**settings))


def given(*texts: str, context: int = 64, held_out: bool = False) -> Corpus:
    found = [Example(text, id=f"text {i}") for i, text in enumerate(texts)]
    return Corpus("desk", {"own": found}, {"own": "domain"}, context, 0, held_out=held_out, glossary=GLOSSARY)


def asked(base: Base, found: Sequence[Tokens]) -> list[str]:
    return [str(base.tokenizer.decode(list(s.ids[1:]))) for s in found]


def head(base: Base, prepared: Prepared) -> Translator:
    made = kind().head(base, prepared)
    assert isinstance(made, Translator)
    return made


def labels(found: Sequence[Tokens], slice: str | None = None) -> set[str]:
    return {s.label for s in found if slice in (None, s.slice)}


# What is asked


def test_a_query_is_the_line_around_the_term_then_the_term(base: Base) -> None:
    text = f"{REST}\n黄宇贷款宙洪荒日月盈昃{REST}\n辰宿列张寒市场\n来暑往{REST}"
    prepared = kind(window=4).prepare(given(text), base)
    assert set(asked(base, prepared.test)) == {"黄宇贷款宙洪荒日\n贷款 =", "宿列张寒市场\n市场 ="}
    query = next(s for s in prepared.test if s.label == "loan")
    assert query.ids[0] == base.prefix_id
    assert (query.group, query.bytes) == ("text 0", len("黄宇贷款宙洪荒日\n贷款 =".encode()))


def test_without_a_window_the_term_stands_alone(base: Base) -> None:
    assert asked(base, kind(window=0).prepare(given(f"{REST}贷款{REST}"), base).test) == ["贷款\n贷款 ="]


def test_a_query_longer_than_the_context_loses_its_start(base: Base) -> None:
    whole, cut = (kind().prepare(given(f"{REST}贷款{REST}", context=n), base).test[0] for n in (500, 24))
    assert len(whole.ids) > 24 == len(cut.ids)
    assert cut.ids == (base.prefix_id, *whole.ids[-23:])


def test_a_form_is_never_cut(base: Base) -> None:
    """A query that has no room for more is the form alone; with less room it is not asked."""
    (whole,) = kind(window=0).prepare(given(f"{REST}贷款{REST}"), base).test
    alone = len(whole.ids) - len(base.tokenizer.encode("贷款"))
    (tight,) = kind().prepare(given(f"{REST}贷款{REST}", context=alone), base).test
    assert asked(base, [tight]) == ["\n贷款 ="]
    with pytest.raises(UserError, match="too few Chinese terms"):
        kind().prepare(given(f"{REST}贷款{REST}", context=alone - 1), base)


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen"])
@pytest.mark.parametrize("text", ["对逾期贷款。", "（逾期贷款）\n", "逾期贷款 ", "a b ="])
def test_the_form_has_the_tokens_it_learned_with(name: str, text: str) -> None:
    """Llama 3 and Qwen would join a full stop with the line break after it."""
    tokenizer = pipelines.family(name).new
    base: Any = SimpleNamespace(tokenizer=tokenizer, prefix_id=1)
    for form in ("逾期", "不良贷款率", "T+0交易", "T = 0"):
        (query,) = terms.encode([terms.Query(text, form)], base, 64)
        newline, closing = terms._marks(base)
        made = Translator([], [], 4, newline=newline, closing=len(closing))
        assert list(made.asked(query.ids)) == tokenizer.encode(form, add_special_tokens=False)
        assert tokenizer.decode(list(query.ids[1:])) == f"{text}\n{form} ="


def test_a_sentence_that_gives_the_answer_away_is_not_asked(base: Base) -> None:
    texts = (f"{REST}贷款（Loan）{REST}", f"{REST}贷款，市场。{REST}")
    prepared = kind().prepare(given(*texts), base)
    assert {(s.label, s.group) for s in prepared.test} == {("loan", "text 1"), ("market", "text 1")}


def test_english_terms_are_not_asked(base: Base) -> None:
    with pytest.raises(UserError, match="too few Chinese terms"):
        kind().prepare(given("The rate of the bank was in the market with a loan and a margin."), base)


def test_terms_that_share_a_token_are_no_candidates(base: Base) -> None:
    twin = Term("loan-2", "loan", ("借款",), (), "desk", "hand")
    words = Term("words", "no token of its own", ("词语",), (), "desk", "hand")
    glossary = replace(GLOSSARY, terms=(*GLOSSARY.terms, twin, words))
    prepared = kind().prepare(replace(given(f"{REST}贷款和借款，市场，词语{REST}"), glossary=glossary), base)
    assert set(prepared.labels) == {t.id for t in GLOSSARY.terms} - {"loan"}
    assert labels(prepared.test) == {"market"}
    assert [base.tokenizer.decode([i]) for i in head(base, prepared).ids.tolist()] == [
        f" {label}" for label in prepared.labels
    ]


# Which side of the fence


@pytest.fixture(scope="module")
def prepared(base: Base) -> Prepared:
    return kind(held_terms=HELD, test_queries=30).prepare(corpus(SOURCES), base)


def test_held_out_terms_are_never_learned(base: Base, prepared: Prepared) -> None:
    learned = labels(prepared.labelled)
    assert labels(prepared.test, terms.CONTEXTS) <= learned
    assert learned.isdisjoint(labels(prepared.test, terms.TERMS))
    assert labels(prepared.test, terms.CONTEXTS) and labels(prepared.test, terms.TERMS)
    assert len(prepared.labels) / 3 < len(learned) < len(prepared.labels)
    made = head(base, prepared)
    assert {t for t, known in zip(prepared.labels, made.known.tolist(), strict=True) if known} == learned
    assert len(made.forms) == len(prepared.labelled)


def test_all_chinese_forms_of_a_known_term_are_learned_whether_or_not_they_occur(base: Base) -> None:
    more = Term("bank", "bank", ("银行", "银行机构"), ("金融行", "the bank"), "desk", "hand")
    glossary = replace(GLOSSARY, terms=tuple(more if t.id == "bank" else t for t in GLOSSARY.terms))
    found = kind(held_terms=0.0).prepare(replace(given(f"{REST}贷款{REST}"), glossary=glossary), base).labelled
    assert {"银行", "银行机构", "金融行"} == {asked(base, [s])[0] for s in found if s.label == "bank"}
    assert labels(found) == {t.id for t in GLOSSARY.terms}


def test_nothing_is_trained(prepared: Prepared) -> None:
    assert prepared.train == prepared.check == ()
    nothing: Any = None
    with pytest.raises(NotImplementedError, match="nothing is trained"):
        kind().loss(nothing, nothing, ())


def test_known_terms_are_tested_in_held_out_documents_only(prepared: Prepared) -> None:
    _, held = split(e for found in corpus(SOURCES).examples.values() for e in found)
    assert {s.group for s in prepared.test if s.slice == terms.CONTEXTS} <= {e.group for e in held}
    assert {s.group for s in prepared.test if s.slice == terms.TERMS} - {e.group for e in held}  # these from anywhere


def test_a_sentence_of_the_learning_side_is_no_new_context(base: Base) -> None:
    """The same words may stand in many documents."""
    found = [replace(e, text=f"{e.text}\n依法贷款为限") for e in corpus(SOURCES).examples["theirs"]]
    made = kind(held_terms=0.0, test_queries=10**6).prepare(replace(corpus(SOURCES), examples={"theirs": found}), base)
    assert made.test and "依法贷款为限\n贷款 =" not in asked(base, made.test)
    _, held = split(found)
    alone = kind(held_terms=0.0, test_queries=10**6).prepare(replace(corpus(SOURCES), examples={"theirs": held}), base)
    assert "依法贷款为限\n贷款 =" in asked(base, alone.test)


@pytest.mark.parametrize("more", [0, 3])
def test_each_term_once_before_any_twice(base: Base, more: int) -> None:
    every = kind(held_terms=HELD, test_queries=10**6).prepare(corpus(SOURCES), base)
    for slice in (terms.CONTEXTS, terms.TERMS):
        count = len(labels(every.test, slice))
        made = kind(held_terms=HELD, test_queries=count + more).prepare(corpus(SOURCES), base)
        found = Counter(s.label for s in made.test if s.slice == slice)
        assert sorted(found.values()) == [1] * (count - more) + [2] * more


def test_the_same_texts_give_the_same_queries_in_whatever_order_they_come(base: Base, prepared: Prepared) -> None:
    found = corpus(SOURCES)
    turned = replace(found, examples={name: list(found.examples[name])[::-1] for name in reversed(found.examples)})
    again = kind(held_terms=HELD, test_queries=30).prepare(turned, base)
    assert (again.test, again.labels, again.labelled) == (prepared.test, prepared.labels, prepared.labelled)


def test_of_a_given_file_every_term_is_asked(base: Base) -> None:
    few = kind(held_terms=HELD, test_queries=1)
    made = few.prepare(corpus(SOURCES, held_out=False), base)
    assert {s.slice for s in made.test} == {terms.CONTEXTS, terms.TERMS}
    whole = kind(held_terms=HELD, test_queries=10**6).prepare(corpus(SOURCES), base)
    assert set(asked(base, made.test)) > set(asked(base, whole.test))


def test_what_cannot_be_asked_is_one_clear_error(base: Base) -> None:
    wanted = r"ask: asks for terms of a glossary.*instead: a glossary in domain\.toml"
    with pytest.raises(UserError, match=wanted):
        kind().prepare(replace(corpus(SOURCES), glossary=None), base)
    with pytest.raises(UserError, match=wanted):
        kind().prepare(corpus(SOURCES), replace(base, added=()))
    learned, _ = split(corpus(SOURCES).examples["theirs"])  # nothing to test on
    with pytest.raises(UserError, match="ask: too few Chinese terms of the glossary"):
        kind(held_terms=0.0).prepare(replace(corpus(SOURCES), examples={"theirs": learned}), base)
    unknown = next(t for t in GLOSSARY.terms if terms._place(t.id) < HELD)  # nothing to learn from
    only = replace(GLOSSARY, terms=(unknown,))
    with pytest.raises(UserError, match="ask: too few Chinese terms of the glossary"):
        kind(held_terms=HELD).prepare(replace(corpus(SOURCES), glossary=only), base)


# How it answers


def shaken(base: Base, prepared: Prepared) -> Top:
    """A top whose LoRA is not zero."""
    made = adapt(base, bundle.heads_of({"ask": head(base, prepared)}), layers=2, rank=4)
    with torch.no_grad():
        for value in made.trainable().values():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def top(base: Base, prepared: Prepared) -> Top:
    return shaken(base, prepared)


def test_known_terms_are_found_wherever_they_occur(base: Base, prepared: Prepared, top: Top) -> None:
    queries = [s for s in prepared.test if s.slice == terms.CONTEXTS]
    found = kind().predict(top, batch_of(base, [(s,) for s in queries]), prepared.labels)
    assert [term for term, _ in found] == [s.label for s in queries]
    assert all(0.5 < cosine <= 1 for _, cosine in found)


def test_the_answer_is_that_of_the_rows_of_the_form(base: Base, prepared: Prepared, top: Top) -> None:
    """A form of several tokens is their mean; what stands around it does not count."""
    made, weight = head(base, prepared), base.embedding.weight
    for form in ("银行贷款", "未有之词"):
        ids = base.tokenizer.encode(form, add_special_tokens=False)
        assert len(ids) > 1
        expected = made(weight[ids].mean(0, keepdim=True), weight[made.ids])
        for text in ("", "银行的利率高于存款。", "河流"):
            query = terms.encode([terms.Query(text, form)], base, 64)
            ((label, cosine),) = kind().predict(top, batch_of(base, [query]), prepared.labels)
            best = int(expected.argmax())
            assert label == prepared.labels[best]
            assert cosine == pytest.approx(made.cosines(expected)[0, best].item(), abs=1e-5)


def test_a_base_with_two_matrices_is_asked_by_its_input_rows(tmp_path: Path) -> None:
    own = load_base(make_base(tmp_path / "base", tied=False), bits=32)
    base = teach(own, GLOSSARY, [], [], tokens=0, seed=0, cache=tmp_path / "rows").base
    prepared = kind(held_terms=HELD, test_queries=30).prepare(corpus(SOURCES), base)
    top = shaken(base, prepared)
    assert torch.equal(top.input_weight, base.embedding.weight)
    batch = batch_of(base, [(s,) for s in prepared.test])
    before = kind().predict(top, batch, prepared.labels)
    with torch.no_grad():
        base.head.weight.normal_()
    assert kind().predict(top, batch, prepared.labels) == before
    assert all(term == s.label for (term, _), s in zip(before, prepared.test, strict=True) if s.slice == terms.CONTEXTS)


def next_token(base: Base, query: Tokens, candidates: Sequence[str]) -> torch.Tensor:
    """The whole base model's logits after a query, of the candidates' English terms."""
    english = {t.id: base.tokenizer.encode(f" {t.en}", add_special_tokens=False) for t in GLOSSARY.terms}
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([query.ids])).logits[0, -1]
    return torch.stack([logits[english[label][0]] for label in candidates])


def test_it_stands_beside_the_next_token_of_the_model_with_and_without_training(
    base: Base, prepared: Prepared, top: Top
) -> None:
    row = prepared.test[:3]  # packed into one row
    batch = batch_of(base, [row])
    expected = torch.stack([next_token(base, query, prepared.labels) for query in row])
    with torch.no_grad():
        adapted = kind()._by_next_token(top, batch)
        with top.untouched():
            torch.testing.assert_close(kind()._by_next_token(top, batch), expected, rtol=1e-4, atol=1e-4)
    assert (adapted - expected).abs().max() > 0.01


# How it is judged

FAMILY = [f"net-interest-{word}" for word in ("income", "margin", "spread", "expense", "revenue")]


def test_hard_candidates_are_those_spelled_most_alike() -> None:
    others = [f"{a}{b}" for a in ("ship", "wind", "leaf", "root", "rain") for b in ("yard", "mill", "let")]
    candidates = sorted([*FAMILY, *others, *(f"bond {i}" for i in range(10))])
    found = terms._alike(candidates, ["net-interest-margin", "shipyard"])
    assert set(found) == {"net-interest-margin", "shipyard"}
    for term, near in found.items():
        assert len(set(near)) == len(near) == terms.CANDIDATES == 20
        assert term in {candidates[i] for i in near}
    assert {candidates[i] for i in found["net-interest-margin"]} >= set(FAMILY)


def test_fewer_labels_are_all_candidates() -> None:
    assert terms._alike(sorted(FAMILY), FAMILY[:1]) == {FAMILY[0]: [0, 1, 2, 3, 4]}
    assert terms._alike(["loan"], ["loan"]) == {"loan": [0]}


Logits = list[float]


class ByHand(terms.Kind):
    """Its scores are written by hand: query → those by rows, by the adapted model's next token, and by the base's."""

    def __init__(self, scores: dict[str, tuple[Logits, Logits, Logits]]) -> None:
        super().__init__("ask", terms.Settings())
        self.scores = {name: torch.tensor(three) for name, three in scores.items()}

    def _by_rows(self, top: Any, batch: Any) -> torch.Tensor:
        return torch.stack([self.scores[s.digest][0] for _, s in batch.placed])

    def _by_next_token(self, top: Any, batch: Any) -> torch.Tensor:
        return torch.stack([self.scores[s.digest][1 + top.base] for _, s in batch.placed])


def judged(
    kind: terms.Kind, candidates: Sequence[str], known: Sequence[bool], queries: Sequence[Tokens]
) -> terms.Outcome:
    """`evaluate` in batches of two."""
    made = Translator(range(len(candidates)), known, 4, newline=0, closing=1)
    top = SimpleNamespace(base=0, heads={"ask": made})

    @contextmanager
    def untouched() -> Iterator[None]:
        top.base = 1
        yield
        top.base = 0

    top.untouched = untouched

    def batched(some: Sequence[Tokens]) -> Any:
        return [SimpleNamespace(placed=[(0, s) for s in some[i : i + 2]]) for i in range(0, len(some), 2)]

    found: Any = top
    top.use = lambda adapter: None
    reader = Reader(found, found, batched, 0, labels={kind.name: tuple(candidates)})
    return evaluate(kind, reader, Prepared((), tuple(queries), labels=tuple(candidates)), 0)


def query(number: int, label: str, slice: str = terms.CONTEXTS) -> Tokens:
    return Tokens((0, number), 9, f"document {number}", slice, label)


def test_scores_by_slice_and_candidates() -> None:
    """Quartz is unlike the 20 bonds, so it stands in the way only among all candidates."""
    candidates = [*(f"bond-{chr(97 + i)}x" for i in range(20)), "quartz", "zephyr"]

    def logits(**at: float) -> list[float]:
        return [at.get(c.replace("-", "_"), 0.0) for c in candidates]

    queries = [query(1, "bond-ax"), query(2, "bond-ax"), query(3, "bond-bx"), query(4, "bond-cx", terms.TERMS)]
    mine = [logits(bond_ax=2, quartz=1), logits(bond_ax=1, quartz=2), logits(bond_ax=2, bond_bx=1), logits(bond_cx=1)]
    adapted = logits(bond_ax=1)
    by_hand = ByHand({q.digest: (found, adapted, logits(quartz=1)) for q, found in zip(queries, mine, strict=True)})
    outcome = judged(by_hand, candidates, [c != "bond-cx" for c in candidates], queries)
    assert {name: score.value for name, score in outcome.scores.items()} == pytest.approx(
        {"top1_all/contexts": 1 / 3, "top1_20/contexts": 2 / 3, "top1_all/terms": 1.0, "top1_20/terms": 1.0}
    )
    for rival, contexts_all in (("next token", 2 / 3), ("base", 0.0)):  # quartz is not among the 20: the first is taken
        assert {name: score.value for name, score in outcome.baseline[rival].items()} == pytest.approx(
            {"top1_all/contexts": contexts_all, "top1_20/contexts": 2 / 3, "top1_all/terms": 0.0, "top1_20/terms": 0.0}
        )
    assert "top1_all/contexts 33.3%" in outcome.summary
    assert outcome.scores["top1_all/contexts"].low < 1 / 3 < outcome.scores["top1_all/contexts"].high


def test_the_slice_is_by_what_the_run_learned() -> None:
    """A given file cannot know that; the run's head does."""
    queries = [query(1, "bond"), query(2, "loan")]
    by_hand = ByHand({q.digest: ([1.0, 0.0], [0.0, 1.0], [0.0, 1.0]) for q in queries})
    scores = judged(by_hand, ["bond", "loan"], [True, False], queries).scores
    assert (scores["top1_all/contexts"].value, scores["top1_all/terms"].value) == (1.0, 0.0)


def test_terms_that_the_run_does_not_know_are_left_out() -> None:
    queries = [query(1, "new"), query(2, "loan"), query(3, "new")]
    by_hand = ByHand({q.digest: ([0.0, 1.0], [0.0, 1.0], [0.0, 1.0]) for q in queries})
    assert judged(by_hand, ["bond", "loan"], [True, True], queries).scores["top1_all/contexts"].value == 1.0
    with pytest.raises(UserError, match="ask: no term in the text is one that the run knows"):
        judged(by_hand, ["bond", "loan"], [True, True], queries[:1])
