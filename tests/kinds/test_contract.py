"""One contract, every kind of task and every task that is shipped."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import domainkit.kinds
from domainkit import assets
from domainkit.data.mix import split
from domainkit.data.tokens import sequences
from domainkit.evaluate import report
from domainkit.glossary import Glossary, Term
from domainkit.graph import ConceptGraph
from domainkit.kinds import Corpus, Kind, Prepared, Reader, lm, load_kind, make_kind
from domainkit.model import bundle
from domainkit.model.base import Base, load_base
from domainkit.model.batch import Batch, batches, collate
from domainkit.model.derived import derive
from domainkit.model.folder import read_tokenizer
from domainkit.model.lexicon import teach
from domainkit.model.split import Trunk
from domainkit.model.top import Top, adapt
from domainkit.model.trunk import forward
from domainkit.report import Report
from domainkit.score import Score
from domainkit.spec import Domain, Source, Task
from domainkit.types import Example, Relation, Span, UserError
from domainkit.types import Sequence as Tokens
from tests.kinds.scored import evaluate
from tests.tiny import make_base, make_tokenizer

CONTEXT = 64  # tokens
KINDS = sorted(path.stem for path in Path(domainkit.kinds.__file__).parent.glob("[a-z]*.py"))
SHIPPED = sorted(path.parent.name for path in (assets.ROOT / "tasks").glob("*/domain.toml"))


pytestmark = pytest.mark.usefixtures("one_thread")


# Every kind, every task

SOURCES = (
    Source(Path("ours.jsonl"), "domain", "en", "ours"),
    Source(Path("yours.jsonl"), "general", "en", "yours"),
    Source(Path("theirs.jsonl"), "domain", "zh", "theirs"),
    Source(Path("others.jsonl"), "general", "zh", "others"),
)


def bare(kind: str) -> Task:
    """A task that sets nothing."""
    return Task("bare", kind, "A bare task", SOURCES, {}, "default", 0, Path("bare.toml"), "bare.toml")


def every_task() -> list[Task]:
    return [*map(bare, KINDS), *(task for name in SHIPPED for task in Domain.load(name).tasks)]


SUBJECTS = (
    (
        "bank rate loan margin credit asset deposit reserve inflation market price",
        "银行 利率 贷款 差额 信用 资产 存款 准备金 膨胀 市场 价格",
    ),
    (
        "ship river wind sail harbour wave storm captain island voyage anchor",
        "轮船 河流 和风 风帆 港口 海浪 风暴 船长 岛屿 航行 船锚",
    ),
    (
        "seed soil root flower garden rain harvest leaf branch orchard farmer",
        "种子 土壤 根系 花朵 花园 雨水 收获 树叶 枝条 果园 农民",
    ),
)
WORDS = [pair for en, zh in SUBJECTS for pair in zip(en.split(), zh.split(), strict=True)]
GLOSSARY = Glossary("desk", tuple(Term(en, en, (zh,), (), "desk", "hand") for en, zh in WORDS), Path("desk.tsv"), "0")


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny base with tokens for the words of the subjects."""
    own = load_base(tiny_base, bits=32)
    return teach(own, GLOSSARY, [], [], tokens=0, seed=0, cache=tmp_path_factory.mktemp("rows")).base


def examples(language: str, seed: str, documents: int = 24) -> list[Example]:
    """Paragraphs of documents about one of three subjects; the subject is the label."""
    draw, found = random.Random(seed), []
    for document in range(documents):
        subject = document % len(SUBJECTS)
        english, chinese = SUBJECTS[subject]
        words = english.split()
        for paragraph in range(3):
            if language == "zh":
                text = "。".join("".join(draw.choices(chinese.split(), k=6)) for _ in range(3)) + "。"
            else:
                frame = "The {} of the {} was in the {} with a {}."
                text = " ".join(frame.format(*draw.choices(words, k=4)) for _ in range(3))
            group = f"{seed}:{document}"
            found.append(Example(text, named(text), related(text), " ".join(text[:40].split()), f"subject {subject}",
                                 f"{group}:{paragraph}", group, language))  # fmt: skip
    return found


def named(text: str) -> tuple[Span, ...]:
    """Every word of a subject, as an entity: half of the words of one label, half of another."""
    words = {word: ("Chemical", "Disease")[i // 2 % 2] for i, word in enumerate(w for pair in WORDS for w in pair)}
    found = re.finditer("|".join(sorted(words, key=len, reverse=True)), text)
    return tuple(Span(m.start(), m.end(), words[m[0]], m[0]) for m in found)


def related(text: str) -> tuple[Relation, ...]:
    """The first chemical causes the first disease, as two corpora call it."""
    chemical, disease = (next((s.concept for s in named(text) if s.label == of), "") for of in ("Chemical", "Disease"))
    return tuple(
        Relation(str(chemical), label, str(disease)) for label in ("CID", "Association") if chemical and disease
    )


def corpus(sources: Sequence[Source], *, held_out: bool = True) -> Corpus:
    return Corpus(
        "finance",
        {s.name: iter(examples(s.language or "en", s.name)) for s in sources},
        {s.name: s.part for s in sources},
        CONTEXT,
        seed=0,
        held_out=held_out,
        glossary=GLOSSARY,
        graph=ConceptGraph.load("medical"),
    )


NOTHING = Prepared((), ())


def reader_of(
    base: Base, top: Top, kind: Any = None, prepared: Prepared = NOTHING, context: int = CONTEXT, **more: Any
) -> Reader:
    """A reader with one task, over activations that are computed when asked for."""
    found = {kind.name: kind} if kind else {}
    return Reader(
        top, base, lambda found: some_batches(base, found), context, found,
        dict.fromkeys(found, prepared.labels), dict.fromkeys(found, prepared.adapter), **more,
    )  # fmt: skip


def batch_of(base: Base, rows: Sequence[tuple[Tokens, ...]]) -> Batch:
    found = list({s.digest: s for row in rows for s in row}.values())
    values = dict(zip([s.digest for s in found], forward(Trunk(base, 2), found), strict=True))
    return collate(rows, values.__getitem__)


def some_batches(base: Base, found: Sequence[Tokens]) -> Iterator[Batch]:
    for rows in batches(found, row_tokens=CONTEXT, batch_tokens=2048, seed=None):
        yield batch_of(base, rows)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_settings_and_a_class(name: str) -> None:
    module = importlib.import_module(f"domainkit.kinds.{name}")
    assert module.__doc__
    assert is_dataclass(module.Settings)
    defaults: Any = load_kind(bare(name)).settings  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        setattr(defaults, fields(module.Settings)[0].name, 1)
    with pytest.raises(UserError, match=r"unknown key \['sise'\] in here; known: "):
        make_kind(name, "task", {"sise": 1}, where="here")
    for one in fields(module.Settings):
        if "min" in one.metadata:
            with pytest.raises(UserError, match=rf"here: {one.name}: .* too small"):
                make_kind(name, "task", {one.name: one.metadata["min"] - 1}, where="here")


def test_an_unknown_kind_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(UserError, match=rf"unknown kind 'lmm'.*{KINDS[0]}"):
        make_kind("lmm", "task", {}, where="here")
    with pytest.raises(UserError, match="unknown kind '__init__'"):
        make_kind("__init__", "task", {}, where="here")


@pytest.mark.parametrize("task", every_task(), ids=lambda task: f"{task.name}-{task.kind}")
def test_a_task_is_prepared_trained_and_scored(
    task: Task, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = load_kind(task)
    kept = derive(tmp_path, "task", task.name, lambda: kind.prepare(corpus(task.sources), base))  # all that is in it
    prepared = replace(kept, adapter=task.adapter)
    assert_prepared(prepared)
    again = replace(kind.prepare(corpus(task.sources), base), adapter=task.adapter)
    assert (again.sequences, again.labels) == (prepared.sequences, prepared.labels)

    torch.manual_seed(0)
    heads = bundle.heads_of({task.name: kind.head(base, prepared)})
    top = adapt(base, heads, layers=2, rank=4, adapters=[task.adapter])
    top.use(task.adapter)
    if prepared.train:
        losses = train(kind, top, base, prepared)
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] < 0.95 * losses[0]

    if prepared.check:
        kind.settle(top, some_batches(base, prepared.check), prepared.labels)
    top.eval()
    reader = reader_of(base, top, kind, prepared)
    monkeypatch.setattr("domainkit.kinds.TOGETHER", 8)
    answers = [one for portion in prepared.portions() for one in kind.answer(reader, portion)]
    assert len(answers) == len(prepared.gold or prepared.test)
    outcome = kind.score(reader, prepared, answers, 0)
    assert kind.score(reader, prepared, json.loads(json.dumps(answers)), 0) == outcome  # as other processes give them
    assert outcome.scores and outcome.baseline and outcome.summary
    assert all(isinstance(score, Score) and score.low <= score.value <= score.high for score in outcome.scores.values())
    made = report(
        outcome, Domain.load(SHIPPED[0]), task, base, prepared, data={}, adapter_sha256="0", seconds=1.0, seed=0
    )
    paths = made.write(tmp_path)
    found = Report.read(paths[0])
    assert found.as_json() == made.as_json()
    assert found.examples > 0
    assert all(table.title in made.markdown() for table in prepared.tables)


def assert_prepared(prepared: Prepared) -> None:
    assert prepared.test and (prepared.train or prepared.labelled), "nothing to learn from"
    for one, others in ((prepared.train, prepared.check + prepared.test), (prepared.check, prepared.test)):
        groups, labels = {s.group for s in one}, {s.label for s in one}
        both = [s for s in others if s.group in groups and s.label in labels]
        assert not both, "a document stands on two sides, and not to test a label that is new"
    assert all(2 <= len(s.ids) <= CONTEXT and s.bytes > 0 and s.group for s in prepared.sequences)
    if prepared.labels:
        assert list(prepared.labels) == sorted(set(prepared.labels))
        assert {s.label for s in prepared.train + prepared.labelled} - {""} <= set(prepared.labels)
    assert all(table.rows for table in prepared.tables)


def train(kind: Kind, top: Top, base: Base, prepared: Prepared, steps: int = 8) -> list[float]:
    """Loss per term on one batch, before every step of Adam on it."""
    row = next(iter(batches(prepared.train, row_tokens=CONTEXT, batch_tokens=512, seed=1)))
    batch, terms = batch_of(base, row), kind.terms(s for one in row for s in one)
    assert terms > 0
    optimizer = torch.optim.AdamW(list(top.trainable().values()), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = kind.loss(top, batch, prepared.labels) / terms
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", KINDS)
def test_predictions_do_not_depend_on_the_neighbours(name: str, base: Base) -> None:
    kind = load_kind(bare(name))
    prepared = kind.prepare(corpus(SOURCES), base)
    torch.manual_seed(0)
    top = adapt(base, bundle.heads_of({"bare": kind.head(base, prepared)}), layers=2).eval()
    rows = next(iter(batches(prepared.test, row_tokens=CONTEXT, batch_tokens=512, seed=None)))
    together = kind.predict(top, batch_of(base, rows), prepared.labels)
    alone = [kind.predict(top, batch_of(base, [(s,)]), prepared.labels)[0] for row in rows for s in row]
    assert len(together) == sum(map(len, rows))
    for one, other in zip(flat(together), flat(alone), strict=True):
        assert one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-4))


def flat(predictions: Sequence[object]) -> list[object]:
    return [part for one in predictions for part in (one if isinstance(one, tuple) else (one,))]


@pytest.mark.parametrize("name", KINDS)
def test_given_data_is_test_data_all_of_it(name: str, base: Base) -> None:
    """What a user hands to `eval` is neither split nor sampled."""
    prepared = load_kind(bare(name)).prepare(corpus(SOURCES[2:3], held_out=False), base)
    assert prepared.train == ()
    assert {s.group for s in prepared.test} == {f"theirs:{i}" for i in range(24)}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ids", [(), ("short",), ("to learn",), ("to test",)], ids=len)
def test_too_little_text_is_one_clear_error(name: str, base: Base, ids: tuple[str, ...]) -> None:
    """Nothing at all, nothing worth reading, nothing to test on, nothing to train on."""
    text = "The rate of the bank was in the market with a loan."
    few = [Example("too short" if id == "short" else text, label="a", id=id) for id in ids]
    learned, held = split([Example("", id="to learn"), Example("", id="to test")])
    assert [e.id for e in (*learned, *held)] == ["to learn", "to test"]
    given = replace(corpus(SOURCES[:1]), examples={"ours": few})
    with pytest.raises(UserError):
        load_kind(bare(name)).prepare(given, base)


# Language adaptation


def language(tokens: int = 3000, share: float = 0.3) -> lm.Kind:
    return lm.Kind("read", lm.Settings(tokens=tokens, share=share, test_tokens=500))


def by_slice(found: Sequence[Tokens]) -> dict[str, int]:
    sizes: dict[str, int] = defaultdict(int)
    for s in found:
        sizes[s.slice] += len(s.ids)
    return dict(sizes)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.55, 0.9])
def test_the_mixture_has_its_share_of_domain_tokens(base: Base, share: float) -> None:
    prepared = language(share=share).prepare(corpus(SOURCES), base)
    sizes = by_slice(prepared.train)
    total = sum(sizes.values())
    assert set(sizes) == {"finance-en", "finance-zh", "general-en", "general-zh"}
    assert (sizes["finance-en"] + sizes["finance-zh"]) / total == pytest.approx(share, abs=0.01)
    assert 0.5 * 3000 <= total <= 1.01 * 3000
    (table,) = [table for table in prepared.tables if table.title == "Mixture"]
    assert {row[0]: row[3] for row in table.rows} == sizes  # the report says what was done


@pytest.mark.parametrize(("share", "slices"), [(0.0, {"general-en"}), (1.0, {"finance-en"})])
def test_a_share_of_all_or_nothing(base: Base, share: float, slices: set[str]) -> None:
    assert set(by_slice(language(share=share).prepare(corpus(SOURCES[:2]), base).train)) == slices


def test_without_general_text_everything_is_domain_text(base: Base) -> None:
    assert set(by_slice(language().prepare(corpus(SOURCES[:1]), base).train)) == {"finance-en"}


def test_slices_are_named_by_part_and_language(base: Base) -> None:
    undetermined = [replace(e, language="") for e in examples("en", "plain")]
    prepared = language().prepare(Corpus("law", {"plain": undetermined}, {"plain": "domain"}, CONTEXT, 0), base)
    assert {s.slice for s in (*prepared.train, *prepared.test)} == {"law-und"}
    assert {s.slice for s in language().prepare(corpus(SOURCES), base).test} == {
        "finance-en", "finance-zh", "general-en", "general-zh",
    }  # fmt: skip


def test_paragraphs_of_a_group_are_read_as_one_document(base: Base) -> None:
    found = examples("en", "ours")
    prepared = lm.Kind("read", lm.Settings()).prepare(corpus(SOURCES[:1], held_out=False), base)
    pieces: dict[str, dict[tuple[int, ...], Tokens]] = defaultdict(dict)
    for s in prepared.plain:
        pieces[s.group][s.ids] = s
    for group, paragraphs in groupby(found, key=lambda e: e.group):
        text = "\n".join(e.text for e in paragraphs)
        whole = Example(text, group=group)
        expected = {s.ids for s in sequences(whole, base.plain, base.prefix_id, context=CONTEXT)}
        assert pieces[group].keys() == expected
        assert sum(s.bytes for s in pieces[group].values()) == len(text.encode())


def test_what_the_filter_drops_is_counted_and_not_trained_on(base: Base) -> None:
    noise = [Example("All rights reserved. Copyright 2020.", id="n", group="n"), examples("en", "ours")[0]]
    found = [*examples("en", "ours"), *noise]
    prepared = language().prepare(Corpus("finance", {"ours": found}, {"ours": "domain"}, CONTEXT, 0), base)
    (table,) = [table for table in prepared.tables if table.title == "Noise filter"]
    assert table.columns == ("rule", "ours")
    rules = dict(table.rows)  # type: ignore[arg-type]
    assert (rules["read"], rules["kept"], rules["exact-duplicate"]) == (74, 72, 1)
    assert "n" not in {s.group for s in (*prepared.train, *prepared.test)}


def test_bits_per_byte_of_a_uniform_model(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path, tied=False), bits=32)
    with torch.no_grad():
        dict(base.model.named_parameters())["lm_head.weight"].zero_()  # every token is as likely as any other
    kind = language()
    prepared = kind.prepare(corpus(SOURCES), base)
    outcome = evaluate(kind, reader_of(base, adapt(base, {}, layers=2).eval()), prepared, 0)
    for name in by_slice(prepared.test):
        own = [s for s in prepared.test if s.slice == name]
        expected = math.log2(512) * sum(len(s.ids) - 1 for s in own) / sum(s.bytes for s in own)
        assert outcome.scores[f"bits_per_byte/{name}"].value == pytest.approx(expected, rel=1e-5)
        assert outcome.baseline["base"][f"bits_per_byte/{name}"].value == pytest.approx(expected, rel=1e-5)
        assert outcome.scores[f"change_percent/{name}"].value == pytest.approx(0, abs=1e-4)


def test_the_base_beside_a_glossary_is_the_one_without(base: Base, tiny_base: Path) -> None:
    """Not the base with new tokens, nor on them: what `load_base` gives, on the same text in its own tokens."""
    kind, own = language(), load_base(tiny_base, bits=32)
    prepared = kind.prepare(corpus(SOURCES), base)
    assert any(i in base.added for s in prepared.test for i in s.ids)
    assert not any(i in base.added for s in prepared.plain for i in s.ids)
    same = zip(prepared.plain, prepared.test, strict=True)  # cut alike: neither side has read more before a word
    assert all((a.group, a.bytes, len(a.ids) >= len(b.ids)) == (b.group, b.bytes, True) for a, b in same)
    taught, untaught = adapt(base, {}, layers=2).eval(), adapt(own, {}, layers=2).eval()
    found = evaluate(kind, reader_of(base, taught), prepared, 0)
    alone = evaluate(kind, reader_of(own, untaught), Prepared((), prepared.plain), 0)
    for name, score in alone.baseline["base"].items():
        assert found.baseline["base"][name].value == pytest.approx(score.value, rel=1e-5)


def test_the_base_in_the_report_is_the_untouched_one(tiny_base: Path) -> None:
    kind, base = language(), load_base(tiny_base, bits=32)
    prepared = kind.prepare(corpus(SOURCES[:2]), base)
    fresh, moved = adapt(base, {}, layers=2).eval(), adapt(base, {}, layers=2)
    train(kind, moved, base, prepared)
    before, after = (evaluate(kind, reader_of(base, top.eval()), prepared, 0) for top in (fresh, moved))
    for name, score in before.baseline["base"].items():
        assert after.baseline["base"][name].value == pytest.approx(score.value, rel=1e-5)
        assert before.scores[name].value == pytest.approx(score.value, rel=1e-5)  # untrained, it is the base
        assert after.scores[name].value != pytest.approx(score.value, rel=1e-3)
        change = 100 * (after.scores[name].value / score.value - 1)
        assert after.scores[name.replace("bits_per_byte", "change_percent")].value == pytest.approx(change, rel=1e-4)


# Windows

TOKENIZER = make_tokenizer(512)
letters = st.sampled_from("银行贷款利率abc xyz\n .,0123456789é̈ß🏦📈👩‍⚕️🇨🇳𝔘न्")
texts = st.text(letters | st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> object:
    return read_tokenizer(tiny_base)


@given(text=texts, context=st.integers(6, 40))
@settings(max_examples=300)
def test_windows_tile_the_text(tokenizer: object, text: str, context: int) -> None:
    """At least 5 tokens beside the prefix: no character has more than 4 bytes, so none fills a window."""
    whole = TOKENIZER.encode(text, add_special_tokens=False).ids
    found = list(sequences(Example(text, group="g", label="l"), tokenizer, 1, context=context, slice="s"))
    assert [token for s in found for token in s.ids[1:]] == whole
    assert sum(s.bytes for s in found) == len(text.encode())
    pieces = [TOKENIZER.decode(list(s.ids[1:]), skip_special_tokens=False) for s in found]
    assert "".join(pieces) == text  # no window begins or ends inside a character
    for s, piece in zip(found, pieces, strict=True):
        assert s.ids[0] == 1 and 2 <= len(s.ids) <= context
        assert s.bytes == len(piece.encode())
        assert (s.group, s.label, s.slice) == ("g", "l", "s")
    full = [len(s.ids) for s in found[:-1]]
    assert all(context - 3 <= length for length in full)  # at most 3 tokens of a character moved on


def test_equal_windows_have_equal_keys_and_others_do_not(tokenizer: object) -> None:
    a, b, c = (
        next(sequences(Example(t, id=t), tokenizer, 1, context=30)) for t in ("The bank", "The bank", "The banks")
    )
    assert a.digest == b.digest != c.digest
    assert Tokens((1, 256), 2, "g").digest != Tokens((256, 1), 2, "g").digest
    assert len({Tokens((int(i),), 1, "g").digest for i in np.arange(300)}) == 300
