"""A second run begins where the first one has come already, with the same bits, and with nothing stale."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from domainkit import recipes
from domainkit.assets import cache_dir
from domainkit.kinds import lm
from domainkit.model import derived, lexicon, trunk
from domainkit.model.ondisk import Waiting
from domainkit.nets.translate import Translator
from domainkit.nets.words import Words
from domainkit.prepare import prepare
from domainkit.spec import Domain
from tests.model.test_rows import write_glossary
from tests.test_recipes import Desk, make_domain, same_weights, write_rows
from tests.test_spoken import ASKS, TERMS
from tests.tiny import make_base

pytestmark = pytest.mark.usefixtures("one_thread")

MADE = Counter({"split": 1, "rows": 1, "task": 3, "head": 2})  # values that a run derives
SMALL = ("glossary_tokens=300", "epochs=1")


class Begun(Exception):
    """Training would begin now."""


def make_desk(folder: Path) -> Desk:
    domain = make_domain(folder / "desk")
    write_glossary(domain / "desk.tsv", TERMS)
    settings = (domain / "domain.toml").read_text() + 'glossary = "desk.tsv"\n'
    (domain / "domain.toml").write_text(settings)
    (domain / "terms.toml").write_text(ASKS)
    return Desk(folder, make_base(folder / "base"), domain, folder / "run")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk where one run has been made."""
    folder = tmp_path_factory.mktemp("reuse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        made = make_desk(folder)
        recipes.finetune(made.request(made.run, overrides=SMALL))
        yield made


def kept() -> Counter[str]:
    """What is derived, by its name."""
    return Counter(path.name.partition("-")[0] for path in (cache_dir() / "derived").iterdir())


def begin(request: recipes.Request) -> None:
    """All that a run does before it trains, but for the trunk."""
    setting = prepare(request, Domain.load(request.domain, overrides=request.overrides))
    recipes.fresh_top(setting, request.seed)


def test_the_second_run_makes_nothing_again_that_the_first_one_made(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept() == MADE

    def again(*given: Any, **named: Any) -> Any:
        raise AssertionError("made once already")

    def begun(*given: Any, **named: Any) -> Any:
        raise Begun

    for owner, name in ((Words, "solve"), (Translator, "solve"), (Waiting, "read"), (lexicon, "choose"), (lm, "clean"),
                        (recipes.trunk, "forward_all"), (trunk, "choose_dtype")):  # fmt: skip
        monkeypatch.setattr(owner, name, again)
    monkeypatch.setattr(recipes, "fit", begun)
    changed = (*SMALL, "learning_rate=1e-3", "rank=2", "alpha=4", "batch=2", "epochs=2")
    with pytest.raises(Begun):
        recipes.finetune(desk.request(tmp_path / "second", overrides=changed, seed=0))
    assert kept() == MADE


def test_what_takes_long_is_told_before_it_is_made_and_not_when_it_is_kept(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("finding the terms", "comparing the new tokens", "lm: cleaning", "regulation: cleaning", "terms: cleaning")
    begin(desk.request(tmp_path / "kept", overrides=SMALL))
    assert not [line for line in told if line in capsys.readouterr().err]
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    begin(desk.request(tmp_path / "made", overrides=SMALL))
    said = capsys.readouterr().err
    places = [said.find(line) for line in told]
    assert places == sorted(places) and places[0] >= 0


def test_kept_or_made_the_weights_have_the_same_bits(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = desk.request(tmp_path / "kept", overrides=(*SMALL, "learning_rate=1e-3"))
    warm = recipes.finetune(request)
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    fresh = recipes.finetune(replace(request, out=tmp_path / "made"))
    assert kept() == MADE
    assert same_weights(warm, fresh) and not same_weights(warm, desk.run)
    assert {"lm", "regulation", "terms"} == {path.stem for path in (warm / "reports").glob("*.json")}
    for path in (warm / "reports").glob("*.json"):
        mine, theirs = (json.loads(one.read_text()) for one in (path, fresh / "reports" / path.name))
        assert mine["scores"] == theirs["scores"] and mine["baseline"] == theirs["baseline"]


def test_what_solves_a_head_travels_no_further(desk: Desk) -> None:
    """The texts that the words learned from are kept to train on, not given away with the run."""
    assert not [name for name in load_file(desk.run / "heads.safetensors") if "texts" in name or "unbiased" in name]


UPWARDS = MADE - Counter(split=1)  # what stands on the rows
CHANGES = {
    "context": Counter(task=3, head=1),  # the classifier's paragraphs are cut at 32 tokens as before
    "seed": Counter(rows=1, task=3),  # the rows come out alike: they are learned in one batch
    "glossary_tokens": UPWARDS,
    "glossary": UPWARDS,
    "document": UPWARDS,
    "bits": MADE,
    "base": MADE,
    "code": MADE,
    "versions": MADE,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_follows_from_something_else_is_made_anew(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    own = make_desk(tmp_path)
    request = replace(own.request(tmp_path / "run", overrides=SMALL), base=str(desk.base))
    before = kept()
    begin(request)
    assert kept() == before  # the same texts in another folder
    if change == "seed":
        request = replace(request, seed=1)
    elif change in ("context", "glossary_tokens", "bits"):
        value = {"context": 48, "glossary_tokens": 200, "bits": 32}[change]
        request = replace(request, overrides=(*SMALL, f"{change}={value}"))
    elif change == "base":
        request = replace(request, base=str(make_base(tmp_path / "other", seed=1)))
    elif change == "glossary":
        write_glossary(own.domain / "desk.tsv", TERMS[:-1])
    elif change == "document":
        for name in ("bank", "bank-zh", "paragraphs"):
            path = own.domain / "data" / f"{name}.jsonl"
            write_rows(path, [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]])
    else:
        monkeypatch.setattr(derived, change, lambda: {"domainkit": "other"})
    begin(request)
    assert kept() - before == CHANGES[change]
