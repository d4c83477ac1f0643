"""Contexts beyond the trained positions: what is stretched, how it is told apart, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from domainkit.model import bundle, positions
from domainkit.model.base import Base, load_base
from domainkit.model.trunk import depends_on
from domainkit.types import UserError
from tests.tiny import FAMILIES, make_base

TRAINED = 64

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "short", positions=TRAINED)


def logits(base: Base) -> torch.Tensor:
    ids = torch.randint(3, 290, (1, TRAINED), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return base.model(input_ids=ids, use_cache=False).logits


def edit(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(("context", "factor"), [(65, 2), (128, 2), (129, 3), (256, 4)])
def test_the_least_whole_factor_is_taken(folder: Path, context: int, factor: int) -> None:
    base = load_base(folder, bits=32, context=context)
    rope = base.model.config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("yarn", factor)
    assert rope["original_max_position_embeddings"] == TRAINED
    assert base.model.config.max_position_embeddings == factor * TRAINED
    assert base.facts["positions"] == f"64 x {factor} by YaRN"


@pytest.mark.parametrize("family", FAMILIES)
def test_slow_rotations_are_slowed_and_fast_ones_kept(tmp_path: Path, family: str) -> None:
    folder = make_base(tmp_path / family, family, positions=TRAINED, layers=2)
    plain, long = (load_base(folder, bits=32, context=context) for context in (0, 256))
    before, after = (base.backbone.rotary_emb.inv_freq for base in (plain, long))
    torch.testing.assert_close(after[-1], before[-1] / 4)
    assert after[0] == before[0]
    assert not torch.equal(logits(plain), logits(long))


def test_up_to_the_trained_positions_nothing_changes(folder: Path) -> None:
    plain, asked = load_base(folder, bits=32), load_base(folder, bits=32, context=TRAINED)
    assert torch.equal(logits(plain), logits(asked))
    assert plain.facts == asked.facts
    assert "positions" not in asked.facts
    assert depends_on(plain, 2, "auto") == depends_on(asked, 2, "auto")


def test_activations_of_other_positions_are_never_taken(folder: Path) -> None:
    keys = [depends_on(load_base(folder, bits=32, context=context), 2, "auto") for context in (64, 128, 256)]
    assert not any(one == other for i, one in enumerate(keys) for other in keys[:i])
    near = load_base(folder, bits=32, context=200)  # one factor, one store
    assert depends_on(near, 2, "auto") == keys[2]


def test_it_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_base(folder, bits=32, context=256)
    assert capsys.readouterr().err == f"{folder} reads 256 tokens at once: positions 64 x 4 by YaRN\n"


SCALED = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


def test_positions_that_are_scaled_already_are_refused(tmp_path: Path) -> None:
    folder = edit(make_base(tmp_path / "base", positions=TRAINED), rope_parameters=SCALED)
    assert load_base(folder, bits=32, context=TRAINED).positions == ""  # what it was made for
    what = r"trained to 64 positions, context is 65, .* scaled already \(linear\): .*; instead: --set context=64"
    with pytest.raises(UserError, match=what):
        load_base(folder, bits=32, context=65)


@pytest.mark.parametrize(("family", "found"), [("gpt2", "not rotary"), ("gemma3_text", "rotary, but not alike")])
def test_other_positions_are_refused(family: str, found: str) -> None:
    config = AutoConfig.for_model(family)
    with pytest.raises(UserError, match=f"{found}.*; instead: --set context={config.max_position_embeddings}"):
        positions.stretch(config, config.max_position_embeddings + 1, where="base")
    assert positions.stretch(config, config.max_position_embeddings, where="base") == ""


def test_a_decoder_without_a_last_position_is_left_alone() -> None:
    assert positions.stretch(AutoConfig.for_model("bloom"), 100_000, where="base") == ""


def test_a_model_that_takes_no_notice_is_refused(folder: Path) -> None:
    base = load_base(folder, bits=32, context=256)
    positions.check(base.model, 256, where=folder)
    base.backbone.rotary_emb.rope_type = "default"
    with pytest.raises(UserError, match="of a kind that takes no scaling"):
        positions.check(base.model, 256, where=folder)


def test_a_run_is_not_read_with_other_positions(folder: Path) -> None:
    plain, long = (load_base(folder, bits=32, context=context) for context in (0, 256))
    record = bundle.Record("desk", long.facts, {}, {}, 0, {}, {}, {})
    bundle.check_base(record, long)
    with pytest.raises(UserError, match="with positions 64 x 4 by YaRN, they are as the base has them"):
        bundle.check_base(record, plain)
