"""Tiny bases with random weights and a real byte-level BPE tokenizer, made in a fraction of a second.

>>> folder = make_base(tmp_path / "base", family="qwen3", layers=3)
>>> base = load_base(folder, bits=32)
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from domainkit.nets import lsh

FAMILIES = ("llama", "qwen2", "qwen3", "deepseek_v2", "deepseek_v3")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "The bank raised its net interest margin by 25 basis points in the third quarter of 2023.",
    "A creditor must disclose the annual percentage rate before the first payment is due.",
    "Inflation expectations remained well anchored, and the Committee kept the federal funds rate unchanged.",
    "The patient was given 40 mg of the drug and recovered within two weeks.",
    "商业银行应当按照规定提取贷款损失准备，并对逾期贷款进行分类管理。",
    "中央银行可以调整存款准备金率，以维护金融市场的稳定。",
)
_SMALL_LSH = {"SINKS": 2, "BLOCK": 8, "WINDOW": 16, "SEGMENTS": ((64, 4, 16), (16, 2, 8), (8, 1, 8))}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "deepseek_v2": _LATENT,
    "deepseek_v3": {**_LATENT, "n_group": 2, "topk_group": 1},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}


def make_base(
    folder: Path,
    family: str = "llama",
    *,
    layers: int = 4,
    width: int = 64,
    vocab: int = 512,
    tied: bool = True,
    positions: int = 512,
    seed: int = 0,
) -> Path:
    """Write a base of `family` with random weights to `folder` and return it.

    `width` is a multiple of 64, the block size of NF4. `vocab` is at least 260 (bytes and special tokens). `positions`:
    those that the base was trained to, as it says. The digit splitter is on. Qwen's tokenizer has no bos token, as in
    the real one. Same arguments, same weights.
    """
    tokenizer = make_tokenizer(vocab)
    bos = None if family.startswith("qwen") else tokenizer.token_to_id("<|im_start|>")
    settings = {
        "num_key_value_heads": 2,
        **_FAMILY[family],
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        "initializer_range": width**-0.5,  # attention and every layer then matter to the output
        "bos_token_id": bos,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None if bos is None else "<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    ).save_pretrained(folder)
    return folder


def make_tokenizer(vocab: int = 512) -> Tokenizer:
    """A byte-level BPE tokenizer trained on CORPUS; at most `vocab` tokens, the special ones first."""
    return Tokenizer.from_str(_trained(vocab))


@lru_cache
def _trained(vocab: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def small_lsh(patch: pytest.MonkeyPatch, **more: int) -> None:
    """Blocks and segments of LSH attention so small that short texts have all of them."""
    for name, value in {**_SMALL_LSH, **more}.items():
        patch.setattr(lsh, name, value)
