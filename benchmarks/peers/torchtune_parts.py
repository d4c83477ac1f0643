# What torchtune's own parts do not cover: tokens that are there already, and LoRA on the last layers alone.

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2

SHAPE = {
    "vocab_size": 49152,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "embed_dim": 576,
    "intermediate_dim": 1536,
    "max_seq_len": 512,
    "rope_base": 100_000,
    "scale_factor": 1,
}


def tokenizer():
    return SimpleNamespace(pad_id=2)


def sequences(tokenizer, path, packed):
    names = {"tokens": "input_ids", "labels": "labels", "input_pos": "position_ids", "seq_lens": "lengths"}
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{ours: torch.tensor(row[theirs]) for ours, theirs in names.items()} for row in rows]


def model(**lora):
    whole, plain = lora_llama3_2(**SHAPE, **lora), llama3_2(**SHAPE)
    whole.layers = nn.ModuleList([*plain.layers[:28], *whole.layers[28:]])
    return whole
