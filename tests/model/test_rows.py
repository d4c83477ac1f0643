"""Rows of new tokens: they start from what the form's own tokens mean, and learn to read as those do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from domainkit.glossary import Glossary
from domainkit.model import lexicon
from domainkit.model.base import Base, load_base
from domainkit.model.lexicon import Taught, counterparts, teach
from domainkit.model.rows import (
    Rows,
    Window,
    calibrate,
    distil,
    extend,
    mean_rows,
    mismatch,
    random_rows,
    second_moment,
    start_rows,
    windows,
)
from domainkit.model.vocab import Vocabulary, choose, inject
from tests.tiny import CORPUS, make_base

pytestmark = pytest.mark.usefixtures("one_thread")

TERMS = (
    ("margin", "net interest margin", "净息差"),
    ("apr", "annual percentage rate", "年利率"),
    ("overdue", "overdue loan", "逾期贷款"),
    ("ffr", "federal funds rate", "联邦基金利率"),
    ("stability", "financial stability", "金融市场"),
)
TEXTS = [f"{line} {CORPUS[(i + 1) % len(CORPUS)]}" for i, line in enumerate(CORPUS)]


def write_glossary(path: Path, terms: Sequence[tuple[str, str, str]] = TERMS) -> Path:
    rows = [f"{id}\t{en}\t{zh}\t\tbanking\thand" for id, en, zh in terms]
    path.write_text("\n".join(("id\ten\tzh\tvariants\tcategory\tsource", *rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A base of its own: `extend` makes the model grow."""
    return load_base(make_base(tmp_path / "base"), bits=32)


@pytest.fixture
def glossary(tmp_path: Path) -> Glossary:
    return Glossary.read(write_glossary(tmp_path / "desk.tsv"))


@pytest.fixture
def vocabulary(base: Base, glossary: Glossary) -> Vocabulary:
    return choose(glossary, base.tokenizer, TEXTS, rows=len(base.embedding.weight))


def found_in(texts: Sequence[str], base: Base, vocabulary: Vocabulary, tokens: int = 10_000) -> list[Window]:
    return windows(texts, base, inject(base.tokenizer, vocabulary), vocabulary.first, tokens=tokens)


def test_a_row_starts_as_the_mean_of_its_own_tokens_and_its_counterparts(
    base: Base, glossary: Glossary, vocabulary: Vocabulary
) -> None:
    rows = mean_rows(base, vocabulary, counterparts(base, glossary, vocabulary))
    at = vocabulary.forms.index("联邦基金利率")
    own = base.embedding.weight[base.tokenizer.encode("联邦基金利率", add_special_tokens=False)].mean(0)
    other = base.embedding.weight[base.tokenizer.encode(" federal funds rate", add_special_tokens=False)].mean(0)
    assert torch.allclose(rows.input[at], (own + other) / 2)
    assert rows.output is None  # tied
    assert torch.allclose(mean_rows(base, vocabulary, {}).input[at], own)


def test_an_untied_head_gets_rows_of_its_own(tmp_path: Path, glossary: Glossary) -> None:
    base = load_base(make_base(tmp_path / "untied", tied=False), bits=32)
    vocabulary = choose(glossary, base.tokenizer, TEXTS, rows=len(base.embedding.weight))
    rows = mean_rows(base, vocabulary, {})
    assert rows.output is not None
    assert torch.allclose(rows.output[0], base.head.weight[list(vocabulary.pieces[0])].mean(0))
    grown = extend(base, inject(base.tokenizer, vocabulary), vocabulary.first, rows)
    assert torch.equal(grown.head.weight[list(grown.added)], rows.output)
    assert torch.equal(grown.embedding.weight[list(grown.added)], rows.input)


def test_growing_leaves_every_other_token_as_it_was(base: Base, vocabulary: Vocabulary) -> None:
    ids = torch.arange(3, 60)[None]
    before = base.model(input_ids=ids).logits
    grown = extend(base, base.tokenizer, vocabulary.first, random_rows(base, vocabulary, seed=1))
    after = grown.model(input_ids=ids).logits
    assert torch.equal(after[..., : vocabulary.first], before)
    assert after.shape[-1] == vocabulary.first + len(vocabulary.forms)
    assert grown.tied
    assert not any(p.requires_grad for p in grown.model.parameters())


def test_windows_pair_positions_that_have_read_the_same(base: Base, vocabulary: Vocabulary) -> None:
    extended = inject(base.tokenizer, vocabulary)
    found = found_in(TEXTS, base, vocabulary)
    assert {i for w in found for i in w.new} >= {vocabulary.first + 1}  # first: in no text
    for window in found:
        first = next(at for at, i in enumerate(window.new) if i >= vocabulary.first)
        assert min(new for _, new in window.same) == first  # the loss begins where the first new token is read
        for old, new in window.same:
            assert base.tokenizer.decode(window.old[1 : old + 1]) == extended.decode(window.new[1 : new + 1])


def test_windows_keep_to_their_budget_and_meet_every_token_first(base: Base, vocabulary: Vocabulary) -> None:
    everything = found_in(TEXTS * 3, base, vocabulary)
    met = {i for w in everything for i in w.new if i >= vocabulary.first}
    some = found_in(TEXTS * 3, base, vocabulary, tokens=60)
    assert sum(len(w.old) for w in some[:-1]) < 60 <= sum(len(w.old) for w in everything)
    assert met and len({i for w in some[: len(met)] for i in w.new if i >= vocabulary.first}) > 1


def test_distilled_rows_read_more_like_the_tokens_they_stand_for(base: Base, vocabulary: Vocabulary) -> None:
    learn, check = found_in(TEXTS, base, vocabulary), found_in([" ".join(CORPUS)], base, vocabulary)
    start = mean_rows(base, vocabulary, {}).input
    learned = start
    for seed in range(20):
        learned = distil(base, vocabulary.first, learned, learn, seed=seed, depth=2, rate=0.02)
    told = mismatch(base, vocabulary.first, {"start": start, "learned": learned}, check, depth=2)
    assert told["learned"] < 0.9 * told["start"]


def test_distilling_starts_at_the_last_token_where_the_head_does_not_look(base: Base, vocabulary: Vocabulary) -> None:
    moment = second_moment(base, found_in(TEXTS, base, vocabulary))
    mean = mean_rows(base, vocabulary)
    start = start_rows(base, vocabulary, mean, moment)
    last = base.embedding.weight[[ids[-1] for ids in vocabulary.pieces]]
    axes = torch.linalg.eigh(moment).eigenvectors  # the directions the head looks along, least first
    moved, wanted = (start.input - mean.input) @ axes, (last - mean.input) @ axes
    shares = (moved * wanted).sum(0) / wanted.square().sum(0)
    assert (shares.diff() < 1e-5).all() and shares[0] > 2 * shares[-1]


def test_shared_rows_keep_the_logits_they_start_with(base: Base, vocabulary: Vocabulary) -> None:
    found = found_in(TEXTS, base, vocabulary)
    moment, start = second_moment(base, found), mean_rows(base, vocabulary).input

    def drift(moment: torch.Tensor | None) -> float:
        rows = distil(base, vocabulary.first, start, found * 5, seed=0, depth=2, rate=0.05, moment=moment)
        return float(((rows - start) @ kept * (rows - start)).sum(-1).mean())

    kept = moment * 100  # as if the states were ten times as long
    assert drift(kept) < 0.8 * drift(None)


def test_a_calibrated_token_is_expected_as_often_as_the_text_has_it(base: Base, vocabulary: Vocabulary) -> None:
    extended = inject(base.tokenizer, vocabulary)
    texts = list(extended(TEXTS * 2, add_special_tokens=False)["input_ids"])
    grown = extend(base, extended, vocabulary.first, mean_rows(base, vocabulary))

    def expected() -> torch.Tensor:
        with torch.no_grad():
            logits = torch.cat(
                [grown.model(input_ids=torch.tensor([[grown.prefix_id, *ids]])).logits[0] for ids in texts]
            )
        return logits.softmax(-1)[:, vocabulary.first :].mean(0)

    total = sum(map(len, texts))
    wanted = torch.tensor([sum(ids.count(i) for ids in texts) / total for i in grown.added])
    before = (expected() - wanted).abs().sum()
    rows = calibrate(grown, texts)
    assert (rows - grown.embedding.weight[list(grown.added)]).norm(dim=1).max() < 1
    grown = extend(grown, extended, vocabulary.first, Rows(rows))
    assert (expected() - wanted).abs().sum() < 0.5 * before


def test_the_same_seed_gives_the_same_rows(base: Base, vocabulary: Vocabulary) -> None:
    found, start = found_in(TEXTS, base, vocabulary), mean_rows(base, vocabulary, {}).input
    one, two = (distil(base, vocabulary.first, start, found, seed=3, depth=2) for _ in range(2))
    assert torch.equal(one, two)
    assert Rows(one).fingerprint != Rows(start).fingerprint


def test_taught_once_found_the_second_time(
    tmp_path: Path, glossary: Glossary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_base(tmp_path / "again")

    def taught() -> Taught:
        base = load_base(folder, bits=32)
        return teach(base, glossary, TEXTS, [" ".join(CORPUS)], tokens=2000, seed=0, cache=tmp_path / "rows")

    first, said = taught(), capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith(("finding", "terms", "comparing"))]
    assert [line.partition(" ")[0] for line in lines] == ["finding", "terms:", "comparing"]
    assert lines[1].endswith(" tokens/s, 0 s left")
    with monkeypatch.context() as patch:
        for name in ("choose", "windows", "distil"):  # what takes long
            patch.delattr(lexicon, name, raising=False)
        second = taught()
    assert "terms: " not in capsys.readouterr().err  # nothing was read again
    assert second.vocabulary == first.vocabulary
    assert second.base.tokenizer.backend_tokenizer.to_str() == first.base.tokenizer.backend_tokenizer.to_str()
    assert second.base.rows == first.base.rows
    assert {"random", "mean", "distilled"} < set(first.mismatch) and second.mismatch == first.mismatch


@pytest.mark.parametrize("change", ["texts", "check", "glossary", "tokens", "seed"])
def test_what_was_taught_differently_is_not_taken(
    tmp_path: Path, glossary: Glossary, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    base = load_base(make_base(tmp_path / "again"), bits=32)
    options: dict[str, Any] = {"tokens": 500, "seed": 0, "cache": tmp_path / "rows"}
    teach(base, glossary, TEXTS, TEXTS[:1], **options)
    if change in options:
        options[change] += 1
    learn, check = TEXTS[: -1 if change == "texts" else None], TEXTS[: 2 if change == "check" else 1]
    other = replace(glossary, sha256="other") if change == "glossary" else glossary
    monkeypatch.setattr(lexicon, "choose", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        teach(load_base(base.path, bits=32), other, learn, check, **options)
