"""From a config alone: the same parameters, the same bytes in every number of bits, and every fault in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from domainkit.model.base import Base, load_base
from domainkit.model.outline import on_disk, outline, size
from domainkit.model.split import Trunk
from domainkit.model.top import Top, adapt
from domainkit.types import UserError
from tests.tiny import FAMILIES, make_base


def bare(folder: Path, target: Path) -> Path:
    """A folder with nothing but the config."""
    target.mkdir()
    shutil.copy(folder / "config.json", target)
    return target


def drawn(folder: Path, bits: int = 32, **more: Any) -> Base:
    return outline(str(folder), **{"bits": bits, "attention": "sdpa", "context": 64, "spell": True, **more})


def tensors(base: Base) -> Iterator[Tensor]:
    """All that holds weights: parameters, and what bitsandbytes keeps beside them."""
    yield from base.model.parameters()
    for module in base.model.modules():
        weight: Any = getattr(module, "weight", None)
        if (state := getattr(weight, "quant_state", None)) is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
        elif (scales := getattr(weight, "SCB", None)) is not None:
            yield scales


def held(base: Base) -> tuple[int, int]:
    """Bytes of a loaded base, without the tables that all its matrices of four bits share, and how many there are."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(base)}
    return sum(found.values()), len(found)


def trainable(top: Top) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in top.trainable().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_what_learns_are_those_of_the_loaded_base(family: str, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", family, tied=family != "qwen2")
    loaded, empty = load_base(folder, bits=32), drawn(bare(folder, tmp_path / "bare"))
    real, told = (dict(base.model.named_parameters()) for base in (loaded, empty))
    assert {name: p.shape for name, p in told.items()} == {name: p.shape for name, p in real.items()}
    assert all(p.is_meta for p in told.values()) and empty.tied == loaded.tied
    heads = {"task": nn.Linear(64, 3)}
    top = adapt(loaded, heads, layers=2, rank=4, adapters=("default", "other"))
    with torch.device("meta"):
        assert trainable(adapt(empty, heads, layers=2, rank=4, adapters=("default", "other"))) == trainable(top)


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_loaded_base(family: str, bits: int, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", family, width=128, tied=family != "qwen2")
    loaded = load_base(folder, bits=bits)
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(loaded)}
    assert size(drawn(bare(folder, tmp_path / "bare"), bits), bits) == pytest.approx(sum(found.values()), rel=0.02)
    saved = (folder / "model.safetensors").stat().st_size
    assert on_disk(drawn(folder)) == (saved, torch.float32)
    assert on_disk(drawn(tmp_path / "bare")) == (pytest.approx(saved, rel=0.1), torch.float32)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "lsh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trunk_and_top_run_without_numbers(family: str, attention: str, tmp_path: Path) -> None:
    base = drawn(bare(make_base(tmp_path / "base", family), tmp_path / "bare"), attention=attention)
    with torch.device("meta"):
        states = Trunk(base, 2, (1,))(torch.zeros(3, 20, dtype=torch.long))
        assert states.shape == (3, 20, 128)
        causal: Any = adapt(base, {}, layers=2).model.get_base_model()
        given = states[..., 64:].requires_grad_()
        causal.base_model(inputs_embeds=given, use_cache=False).last_hidden_state.sum().backward()
    assert given.grad is not None and given.grad.is_meta


def test_a_file_will_do_and_lies_where_it_wants(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_base / "config.json", tmp_path / "my-model.json")
    assert drawn(tmp_path / "my-model.json").depth == 4


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "config.json: not valid JSON.*instead: the config.json of"),
        ("[1, 2]", "config.json: not a JSON object; instead"),
        ('{"model_type": "nonesuch"}', "bare/config.json: not a decoder.*nonesuch.*instead: a causal language model"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "not a decoder.*bert.*instead"),
        (
            '{"model_type": "llama", "hidden_size": "wide"}',
            "config.json: no model.*'hidden_size' expected int.*instead",
        ),
        (
            '{"model_type": "llama", "num_attention_heads": 0}',
            "config.json: no model can be built.*zero; instead: the config",
        ),
    ],
)
def test_a_config_at_fault_is_said_in_one_line(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(text)
    with pytest.raises(UserError, match=fault) as raised:
        drawn(tmp_path / "bare")
    assert "\n" not in str(raised.value)


def test_a_config_that_does_not_exist_is_said(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", tmp_path / "nowhere.json", "who/what"):
        with pytest.raises(UserError, match=f"{name}: no such config; instead: one of smollm2-135m, a folder with"):
            drawn(Path(name))
    with pytest.raises(UserError, match=r"config.json is missing; instead"):
        drawn(tmp_path)


def test_a_base_without_a_tokenizer_cannot_count(tiny_base: Path, tmp_path: Path) -> None:
    folder = bare(tiny_base, tmp_path / "bare")
    with pytest.raises(UserError, match=r"bare: there is no tokenizer.*instead: .*--tokens N"):
        drawn(folder, spell=False)
    spelled = drawn(folder).tokenizer
    assert spelled.decode(spelled.encode("a 良")) == "a 良" and len(spelled.encode("a 良")) == 5
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] > max(spelled.get_vocab().values())
