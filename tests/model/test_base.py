"""Checking, finding and loading a base; every refusal says what is wrong and what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import bitsandbytes as bnb
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from domainkit.model.base import load_base
from domainkit.model.bases import available, check, resolve
from domainkit.model.folder import MANIFEST, fingerprint
from domainkit.types import UserError
from tests.tiny import make_base

ENGLISH = (
    "The Federal Reserve is the central bank of the United States. It was created by Congress to provide the nation "
    "with a safer, more flexible, and more stable monetary and financial system."
)


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def change(folder: Path, **facts: object) -> None:
    """Set (or with None, drop) keys of config.json."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **facts}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# Loading


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_every_width_in_bits_computes(tiny_base: Path, bits: int) -> None:
    base = load_base(tiny_base, bits=bits)
    ids = torch.tensor([base.tokenizer.encode("Inflation remained well anchored.")])
    with torch.no_grad():
        logits = base.model(input_ids=ids).logits
    assert torch.isfinite(logits).all()
    layer = base.layers()[0].mlp.up_proj
    kinds = {4: bnb.nn.Linear4bit, 8: bnb.nn.Linear8bitLt, 16: torch.nn.Linear, 32: torch.nn.Linear}
    assert type(layer) is kinds[bits]
    assert (base.bits, base.model.dtype) == (bits, torch.bfloat16 if bits == 16 else torch.float32)


def test_says_nothing(tiny_base: Path) -> None:
    script = (
        "import sys, torch; from domainkit.model.base import load_base\n"
        "for bits in (4, 8): load_base(sys.argv[1], bits=bits).model(input_ids=torch.tensor([[5, 6, 7]]))"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script, tiny_base], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(("quick", "compute"), [(False, torch.float32), (True, torch.bfloat16)])
def test_nf4_is_the_same_in_eval_and_train_and_lets_gradients_through(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, quick: bool, compute: torch.dtype
) -> None:
    for module in (bnb.nn.modules, bnb.functional):
        monkeypatch.setattr(module, "has_avx512bf16", lambda: quick)
    monkeypatch.setattr("domainkit.model.precision.quick", lambda device: quick)
    base = load_base(tiny_base, bits=4)
    assert (base.compute, base.model.dtype) == (compute, torch.float32)
    layer = base.layers()[0].mlp.down_proj
    x = torch.randn(1, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        quiet = layer.eval()(x)  # the forward without gradients is what repacks the weights
    seen = x.clone().requires_grad_()
    out = layer(seen)
    out.square().sum().backward()
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    wanted = x.clone().requires_grad_()
    torch.nn.functional.linear(wanted.to(compute), weight.to(compute)).float().square().sum().backward()
    assert torch.equal(quiet, out) and torch.equal(quiet, layer.train()(x))
    assert torch.allclose(seen.grad, wanted.grad, rtol=1e-5, atol=1e-5 if compute == torch.float32 else 1e-2)


def test_model_is_the_same_in_eval_and_train_mode(tiny_base: Path) -> None:
    base = load_base(tiny_base, bits=4)
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, base.model.train()(input_ids=ids).logits)


def test_tokenizer_is_read_as_its_file_says(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", "qwen2")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "Qwen2Tokenizer"}))
    base = load_base(folder, bits=32)
    assert len(base.tokenizer.encode("2023", add_special_tokens=False)) == 4  # Digits, which Qwen2Tokenizer lacks


def test_prefix_falls_back_to_pad_and_then_complains(folder: Path) -> None:
    base = load_base(folder, bits=32)
    base.tokenizer.bos_token = base.tokenizer.eos_token = None
    assert base.prefix_id == base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    base.tokenizer.pad_token = None
    with pytest.raises(UserError, match="no bos, eos or pad"):
        _ = base.prefix_id


def test_sharded_weights_load(folder: Path) -> None:
    whole = load_base(folder, bits=32)
    whole.model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ids = torch.tensor([[1, 20, 30]])
    assert torch.equal(load_base(folder, bits=32).model(input_ids=ids).logits, whole.model(input_ids=ids).logits)


# Refusing


def test_unknown_settings_are_refused_with_the_known_ones(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"bits must be 4, 8, 16 or 32, not 5"):
        load_base(tiny_base, bits=5)
    with pytest.raises(UserError, match=r"unknown attention 'fast'; instead: one of .*eager.*sdpa"):
        load_base(tiny_base, attention="fast")


def test_attention_known_but_not_installed_is_refused(tiny_base: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("may be installed here")
    with pytest.raises(UserError, match=r"cannot load the model: .*[Ff]lash"):
        load_base(tiny_base, bits=32, attention="flash_attention_2")


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    load_base(folder, bits=32)  # safetensors beside it: fine
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pickled \(pytorch_model.bin\).*instead: .*safetensors"):
        load_base(folder, bits=32)


def test_missing_shards_are_named(folder: Path) -> None:
    load_base(folder, bits=32).model.save_pretrained(folder, max_shard_size="200KB")
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=rf"1 of \d+ weight files are missing: {gone.name}"):
        load_base(folder)


def test_missing_weight_is_not_filled_with_random_numbers(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, e.g. model.layers.1.mlp.up_proj.weight"):
        load_base(folder)


def test_cut_off_weights_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match="cannot load the model"):
        load_base(folder)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer is missing"),
        ("model.safetensors", "no weights"),
    ],
)
def test_missing_files_are_named(folder: Path, file: str, what: str) -> None:
    (folder / file).unlink()
    with pytest.raises(UserError, match=what):
        load_base(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_broken_json_is_one_clear_fault(folder: Path, file: str) -> None:
    (folder / file).write_text("{")
    with pytest.raises(UserError, match=r"not valid JSON|cannot read the tokenizer"):
        load_base(folder)


def test_code_from_the_author_never_runs(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    change(folder, auto_map=auto)
    load_base(folder, bits=32)  # a type that transformers knows: its own code is used
    change(folder, model_type="evil")
    with pytest.raises(UserError, match="'evil' needs code from its author"):
        load_base(folder)
    assert not ran.exists()


def test_quantized_weights_are_refused(folder: Path) -> None:
    change(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UserError, match="already quantized"):
        load_base(folder)


def test_only_decoders_are_taken(folder: Path) -> None:
    small = BertConfig(vocab_size=99, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertForMaskedLM(small).save_pretrained(folder)
    with pytest.raises(UserError, match=r"not a decoder.*bert.*BertForMaskedLM"):
        load_base(folder)
    change(folder, model_type="unheard-of", architectures=None)
    with pytest.raises(UserError, match="not a decoder"):
        load_base(folder)


# Finding


def test_local_folders_need_no_network(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_base(tiny_base).path == tiny_base


def test_hub_is_asked_only_when_allowed(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        asked.append(local_files_only)
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(tiny_base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"someone/model: no such folder, nor .*--hub allows the download"):
        resolve("someone/model")
    assert resolve("someone/model", hub=True) == tiny_base
    assert load_base("someone/model", bits=32, hub=True).name == "someone/model"
    assert asked == [True, False, False]


def test_what_is_not_there_is_said(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instead: domainkit base pull smollm2-135m"):
        resolve("smollm2-135m")
    with pytest.raises(UserError, match="no such folder; instead: one of smollm2-135m"):
        resolve(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="this is a file"):
        resolve(tmp_path / "file")
    assert [(entry.name, entry.installed, entry.size) for entry in available()] == [("smollm2-135m", False, 93_000_000)]


def test_check_reads_any_folder(folder: Path) -> None:
    entry = check(folder)
    assert (entry.sha256, entry.installed) == (fingerprint(folder), True)
    manifest = {"fingerprint": entry.sha256, "ids": {"12": [7, 7]}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"cuts '12' into \[\d+, \d+\], expected \[7, 7\]"):
        check(folder)
    change(folder, rope_theta=5.0)
    with pytest.raises(UserError, match=f"files have changed: fingerprint is .*, expected {entry.sha256}"):
        check(folder)
