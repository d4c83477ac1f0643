"""What activations on disk cost in bytes per token, and what storing them in fewer bits does to the loss.

    python benchmarks/activations.py [--tokens 20000]

Held-out finance and general text goes through the trunk of the embedded base (4 bits, all but the last two layers).
Its activations are stored as the program stores them, read back, and the language-model loss of the untouched top on
them is compared with that on the exact ones. Rounding to 8 bits, which the program does not do, stands beside: whole
numbers with a scale for each token, or for each 64 numbers of one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_results
from texts import texts

from domainkit.model.base import Base, load_base
from domainkit.model.split import Trunk, top
from domainkit.model.store import Store
from domainkit.model.trunk import SHARD, forward
from domainkit.nets.loss import token_logprobs
from domainkit.types import Sequence as Tokens

LENGTH = 512  # tokens of a sequence
LAYERS = 2


def cut(base: Base, tokens: int) -> list[Tokens]:
    """Sequences from all held-out texts, `tokens` in all."""
    found = texts(base, 8192)
    each = tokens // len(found) // LENGTH
    return [
        Tokens((base.prefix_id, *ids[0, i * LENGTH : (i + 1) * LENGTH - 1].tolist()), 0, name, slice=name)
        for name, ids in found.items()
        for i in range(each)
    ]


@torch.no_grad()
def losses(base: Base, sequences: Sequence[Tokens], values: Sequence[np.ndarray]) -> torch.Tensor:
    """Nats of every token but the first of each sequence, from activations."""
    model, weight, found = top(base, LAYERS), base.head.weight, []
    for s, hidden in zip(sequences, values, strict=True):
        embeds = torch.from_numpy(hidden.astype(np.float32))[None].to(base.model.device, base.model.dtype)
        last = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, :-1]
        found.append(-token_logprobs(last, weight, torch.tensor(s.ids[1:], device=last.device)).cpu())
    return torch.cat(found)


def eight_bits(values: np.ndarray, block: int) -> np.ndarray:
    """Rounded to whole numbers -127 to 127, with a scale for each `block` numbers, and back."""
    parts = values.reshape(len(values), -1, block)
    scale = np.abs(parts).max(-1, keepdims=True).astype(np.float16).astype(np.float32) / 127
    return (np.round(parts / scale).clip(-127, 127) * scale).reshape(values.shape)


def stored(root: Path, sequences: Sequence[Tokens], values: Sequence[np.ndarray], dtype: str) -> dict[str, Any]:
    """What a store gives back, its bytes per token on disk, and how long it takes to open and to verify."""
    of = {"activations": dtype}
    store = Store.create(root, of, width=values[0].shape[1], dtype=dtype, why="as set")
    for at in range(0, len(sequences), SHARD // LENGTH):
        part = slice(at, at + SHARD // LENGTH)
        store.put([(s.digest, v) for s, v in zip(sequences[part], values[part], strict=True)])
    size = sum(path.stat().st_size for path in store.folder.glob("*.safetensors"))
    began = time.perf_counter()
    again = Store.open(root, of)
    opened = time.perf_counter()
    assert again
    again.verify(s.digest for s in sequences)
    verified = time.perf_counter()
    return {
        "values": [again.get(s.digest) for s in sequences],
        "bytes per token": round(size / sum(len(s.ids) for s in sequences), 1),
        "seconds to open, per GB": round((opened - began) / size * 1e9, 2),
        "seconds to verify, per GB": round((verified - opened) / size * 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=20_000)
    args = parser.parse_args()
    load = [os.getloadavg()[0]]
    torch.set_grad_enabled(False)
    base = load_base("smollm2-135m")
    sequences = cut(base, args.tokens)
    passing = Trunk(base, LAYERS)
    exact = [value for s in sequences for value in forward(passing, [s])]
    with tempfile.TemporaryDirectory() as folder:
        kept = {dtype: stored(Path(folder), sequences, exact, dtype) for dtype in ("float32", "float16")}
    for name, block in (("8 bits, a scale for each token", base.width), ("8 bits, a scale for each 64 numbers", 64)):
        values = [eight_bits(value, block) for value in exact]
        kept[name] = {"values": values, "bytes per token": base.width + 2 * base.width / block}
    whole = losses(base, sequences, exact)
    results: dict[str, Any] = {"tokens": len(whole), "loss, nats per token": float(whole.mean())}
    for name, told in kept.items():
        found = losses(base, sequences, told.pop("values"))
        results[name] = told | {
            "loss changes, relative": float((found.mean() - whole.mean()) / whole.mean()),
            "mean change of a token's loss, nats": float((found - whole).abs().mean()),
        }
    load.append(os.getloadavg()[0])
    print(results, "→", write_results("activations", results, load=load))


if __name__ == "__main__":
    main()
