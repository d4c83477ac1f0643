"""Packed folders: written once, loaded as they are with the same bits everywhere, and refused where they do not fit."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from domainkit.cli import app
from domainkit.model import bundle, quantize
from domainkit.model.base import Base, load_base
from domainkit.model.bases import check
from domainkit.model.folder import MANIFEST
from domainkit.model.names import embed_names
from domainkit.model.outline import outline, size
from domainkit.model.packed import packable, values
from domainkit.model.rows import Rows, extend
from domainkit.model.split import Trunk, check_split
from domainkit.model.streamed import Skeleton
from domainkit.model.top import adapt
from domainkit.model.trunk import depends_on
from domainkit.nets.affine import pack, unpack
from domainkit.types import UserError
from tests.tiny import make_base

pytestmark = pytest.mark.usefixtures("one_thread", "exact_products")

IDS = torch.tensor([[1, 20, 300, 4, 5, 6, 77], [9, 8, 7, 200, 5, 0, 0]])
DEPTH, NEW = 3, 5


@pytest.fixture(scope="module", params=["llama", "qwen2", "deepseek_v3"])  # qwen2: maps with a bias
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied = not request.param.startswith("deepseek")  # as the real ones are
    return make_base(tmp_path_factory.mktemp(request.param) / "base", request.param, layers=DEPTH, tied=tied)


@pytest.fixture(scope="module")
def packed(plain: Path) -> Path:
    return quantize.quantize(plain, plain.parent / "packed")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed Llama."""
    place = tmp_path_factory.mktemp("llama")
    return quantize.quantize(make_base(place / "base", layers=DEPTH, tied=request.param), place / "packed")


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.model(input_ids=IDS, use_cache=False).logits


# Written and loaded


def test_what_is_loaded_computes_what_was_packed_to_the_bit(plain: Path, packed: Path) -> None:
    """The unquantized base, every packed matrix unpacked in its place."""
    base, wanted, stored = load_base(packed), load_base(plain, bits=32), load_file(packed / "model.safetensors")
    names = packable(wanted.model, 32)
    assert {"model.embed_tokens", "lm_head", "model.layers.0.mlp.down_proj"} <= names.keys()
    with torch.no_grad():
        for module in {id(module.weight): module for module in names.values()}.values():  # a tied head once
            name = next(name for name, one in names.items() if one.weight is module.weight)
            plainly = torch.equal(stored[f"{name}.weight"], pack(module.weight, 32))
            assert plainly == (module.weight is not wanted.head.weight)  # that is packed for its states
            module.weight.copy_(unpack(stored[f"{name}.weight"], module.weight.shape[1], 32))
    assert torch.equal(logits(base), logits(wanted))
    assert (base.bits, base.packed, base.tied) == (4, 32, wanted.tied)
    assert base.model.dtype == torch.float32 and not any(p.requires_grad for p in base.model.parameters())


def test_streamed_layers_compute_the_same_bits(packed: Path) -> None:
    whole, streamed = load_base(packed), load_base(packed, stream="always", keep=1)
    assert streamed.streamed == DEPTH - 1
    assert torch.equal(logits(streamed), logits(whole))
    assert torch.equal(*(Trunk(base, 1)(IDS) for base in (whole, streamed)))
    assert (streamed.facts, streamed.tied, streamed.sha256) == (whole.facts, whole.tied, whole.sha256)


def test_unpacked_it_is_a_plain_model_with_the_same_weights(llama: Path, tmp_path: Path) -> None:
    base, whole = load_base(llama), load_base(llama, bits=32)
    assert whole.packed == 0 and whole.tied == base.tied and type(whole.head) is torch.nn.Linear
    assert torch.equal(logits(whole), logits(base))
    assert load_base(llama, bits=16).model.dtype == torch.bfloat16
    whole.model.save_pretrained(tmp_path / "plain")  # as export does
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS, use_cache=False).logits, logits(base))


def test_transformers_loads_it_once_domainkit_is_imported(llama: Path) -> None:
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(llama)(input_ids=IDS, use_cache=False).logits
    assert torch.equal(found, logits(load_base(llama)))


def test_the_same_base_gives_the_same_bytes_and_a_manifest_tells_them(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Skeleton, "fits", False)  # it is streamed meanwhile, as one too large for the memory
    again = quantize.quantize(llama.parent / "base", tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (llama / name).read_bytes()
    manifest = json.loads((llama / MANIFEST).read_text())
    assert manifest["fingerprint"] == check(llama).sha256 == load_base(llama).sha256
    assert manifest["origin"] == check(llama.parent / "base").sha256 != manifest["fingerprint"]
    assert sorted(path.name for path in llama.parent.iterdir()) == ["base", "packed"]  # no draft is left


def test_several_weight_files(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "SHARD", 20_000)
    sharded = quantize.quantize(llama.parent / "base", tmp_path / "sharded")
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name.startswith("model-00001-of-")
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in files)
    together = {key: value for file in files for key, value in load_file(file).items()}
    whole = load_file(llama / "model.safetensors")
    assert together.keys() == whole.keys() and all(torch.equal(together[key], whole[key]) for key in whole)
    assert torch.equal(logits(load_base(sharded)), logits(load_base(llama)))


def test_memory_and_disk_are_what_the_outline_tells(packed: Path) -> None:
    base, drawn = load_base(packed), outline(str(packed), bits=4, attention="sdpa", context=0)
    told = size(drawn, 4)
    assert told == sum(p.nbytes for p in base.model.parameters())
    assert 0 <= (packed / "model.safetensors").stat().st_size - told < 12_000  # names and shapes
    assert size(drawn, 32) == sum(p.nbytes for p in load_base(packed, bits=32).model.parameters())
    assert drawn.packed == 32 and drawn.tied == base.tied
    assert drawn.model(input_ids=IDS.to("meta")).logits.shape == (2, 7, len(values(base.head)))


# In use


def test_it_can_be_split_and_adapted(llama: Path) -> None:
    base = load_base(llama)
    check_split(base, 1)
    top = adapt(base, {}, layers=1, rank=4)
    learns = top.trainable()
    assert learns and all(".lora_" in name and ".layers.2." in name for name in learns)
    states = Trunk(base, 1)(IDS)
    out = top.model.get_base_model()(inputs_embeds=states, use_cache=False).logits
    out.square().mean().backward()
    assert all(value.grad is not None for value in learns.values())
    assert torch.equal(top.output_weight, values(base.head)) and torch.equal(top.input_weight, values(base.embedding))


def test_rows_of_new_tokens_stay_as_they_are(llama: Path) -> None:
    base = load_base(llama)
    before, count = logits(base), len(base.tokenizer)
    draw = torch.Generator().manual_seed(0)
    rows = Rows(*(torch.randn(NEW, base.width, generator=draw) for _ in range(1 if base.tied else 2)))
    grown = extend(base, base.tokenizer, count, rows)
    new = torch.tensor([list(grown.added)])
    assert torch.equal(grown.embedding(new)[0], rows.input)
    assert torch.equal(grown.embedding(IDS), values(grown.embedding)[IDS])
    assert torch.equal(values(grown.head)[count:], rows.input if base.tied else rows.output)
    after = logits(grown)
    assert after.shape[-1] == count + NEW == grown.model.config.vocab_size
    assert torch.allclose(after[..., :count], before, atol=1e-6)  # a product with more columns
    kept = {name: values(grown.model.get_submodule(name)) for name in bundle.token_modules(grown)}
    assert len(kept) == (1 if base.tied else 2)
    mixed = torch.cat([IDS[0], new[0]])
    assert torch.equal(grown.embedding(mixed), kept["model.embed_tokens"][mixed])


def test_new_tokens_keep_their_ids_where_a_tokenizer_has_more_tokens_than_there_are_rows(llama: Path) -> None:
    base = load_base(llama)
    before, count = logits(base), len(values(base.embedding))
    rows = Rows(*(torch.ones(NEW, base.width) for _ in range(1 if base.tied else 2)))
    grown = extend(base, base.tokenizer, count + 2, rows)
    new = torch.tensor(grown.added)
    assert torch.equal(values(grown.embedding)[new], rows.input) and torch.equal(grown.embedding(new), rows.input)
    after = logits(grown)
    assert torch.allclose(after[..., :count], before, atol=1e-6) and after.shape[-1] == count + 2 + NEW


def test_spare_rows_are_taken_by_new_tokens(llama: Path) -> None:
    base = load_base(llama)
    rows = Rows(*(torch.ones(NEW, base.width) for _ in range(1 if base.tied else 2)))
    grown = extend(base, base.tokenizer, 100, rows)
    weight = values(grown.head)
    assert len(weight) == len(base.tokenizer) and (weight[100 : 100 + NEW] == 1).all()
    assert torch.equal(grown.embedding(torch.arange(len(weight))), values(grown.embedding))


def test_names_are_embedded(llama: Path) -> None:
    base = load_base(llama)
    ids = base.tokenizer(" net interest margin", add_special_tokens=False)["input_ids"]
    assert torch.allclose(torch.from_numpy(embed_names(base, ["Net Interest Margin"])[0]), base.input_rows[ids].mean(0))


def test_activations_of_another_quantization_are_never_taken(llama: Path) -> None:
    folder = llama.parent / "base"
    keys = [depends_on(load_base(path, bits=bits), 1, "auto") for path in (llama, folder) for bits in (4, 32)]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 4


# Refused


def test_what_cannot_be_packed_is_refused(llama: Path, tmp_path: Path) -> None:
    plain = llama.parent / "base"
    with pytest.raises(UserError, match="packed already; instead: load it as it is"):
        quantize.quantize(llama, tmp_path / "new")
    with pytest.raises(UserError, match="exists already; instead: another --out"):
        quantize.quantize(plain, llama)
    narrow = make_base(tmp_path / "narrow", width=96, layers=2)
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"hidden_size": 96, "intermediate_size": 96}))
    with pytest.raises(UserError, match="no weight can be packed"):
        quantize.quantize(narrow, tmp_path / "new")
    only = tmp_path / "gguf"
    shutil.copytree(plain, only)
    os.rename(only / "model.safetensors", only / "model.gguf")
    with pytest.raises(UserError, match=r"the weights are GGUF; instead: .*gguf_file=FILE"):
        quantize.quantize(only, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_write_that_fails_leaves_nothing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize.safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        quantize.quantize(llama.parent / "base", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_bits_that_it_does_not_have_and_files_that_changed(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"packed in 4 bits; instead: bits=4, or 16 or 32"):
        load_base(llama, bits=8)
    with pytest.raises(UserError, match="not streamed in 32 bits; instead: bits=4"):
        load_base(llama, bits=32, stream="always")
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"copy: its files have changed: .*instead: a fresh copy"):
        load_base(copy)


def test_facts_name_the_packing(llama: Path) -> None:
    base = load_base(llama)
    assert base.facts["packed"] == 32 and "packed" not in replace(base, packed=0).facts


def test_the_command_writes_it_and_says_what_it_saved(llama: Path, tmp_path: Path) -> None:
    arguments = ["base", "quantize", str(llama.parent / "base"), "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and f"base: {tmp_path / 'new'}, 0 MB; it was " in done.output
    assert load_base(tmp_path / "new").packed == 32
