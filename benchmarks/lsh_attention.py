"""What LSH attention costs and keeps beside dense attention, and beside a window with as many keys.

    python benchmarks/lsh_attention.py time          # seconds and memory by length, of one key head with three queries'
    python benchmarks/lsh_attention.py perplexity    # of the embedded base on texts of 8,192 tokens, every layer LSH
    python benchmarks/lsh_attention.py copy          # loss on a passage that stood at the start of the text before

`time` takes the queries and keys that the base itself has in a middle layer (repeated beyond its 8,192 positions, with
noise). Settings were chosen on other texts than those of `perplexity` and `copy`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import pydoc
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import write_results
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from domainkit.assets import ROOT
from domainkit.model.attention import scored_in
from domainkit.model.base import Base, load_base
from domainkit.nets import lsh

LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
BACKWARD = 32768  # longest text whose backward pass is timed
DENSE = 65536  # longest text that dense attention is timed on; beyond, four times as long for twice the text
TEXT = 8192
PASSAGE = 1024  # tokens that are copied
MODULES = ("logging", "unittest.mock", "decimal", "tarfile")
FILES = ("fed", "cfpb", "statutes-finance", "general-en")
LAYER = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("profile", choices=("time", "perplexity", "copy"), nargs="?", default="time")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--keys", type=int, nargs="+", default=[lsh.KEYS])
    args = parser.parse_args()
    load = [os.getloadavg()[0]]
    base = load_base("smollm2-135m", bits=32)
    if args.profile == "time":
        held = states(base)
        results = [timed(*lengthened(held, n), keys) for n in args.lengths for keys in args.keys]
    else:
        found = texts(base) if args.profile == "perplexity" else copies(base)
        results = [
            quality(base, name, ids, scored, keys) for name, (ids, scored) in found.items() for keys in args.keys
        ]
    changes = {
        f"{name}, {keys} keys": round(statistics.mean(r[name] for r in results if r["keys"] == keys), 4)
        for name in ("lsh", "window")
        for keys in args.keys
        if args.profile != "time"
    }
    load.append(os.getloadavg()[0])
    print(write_results(f"lsh_attention-{args.profile}", results, changes=changes, load=load))


def ways(keys: int) -> dict[str, Callable[..., Tensor]]:
    """Dense attention, LSH, and a window with as many keys: each of (q, k, v, scale)."""
    return {
        "dense": lambda *of: scaled_dot_product_attention(*of[:3], is_causal=True, scale=of[3], enable_gqa=True),
        "lsh": lambda *of: lsh.attend(*of, keys=keys, scored_in=scored_in("cpu")),
        "window": lambda *of: window(*of, lsh.BLOCK * 3 // 2 + keys),
    }


def timed(q: Tensor, k: Tensor, v: Tensor, keys: int) -> dict[str, Any]:
    """Seconds of one key head with its group of query heads; the sides take turns, the median of three counts."""
    tokens = k.shape[2]
    sides = ways(keys)
    if tokens > DENSE:
        del sides["dense"]
    rounds = 3 if tokens <= 16384 else 1
    found: dict[str, Any] = {"tokens": tokens, "keys": keys}
    for what in ("forward", "forward and backward"):
        if what != "forward" and tokens > BACKWARD:
            continue
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                given = [of.clone().requires_grad_(what != "forward") for of in (q, k, v)]
                began = time.perf_counter()
                out = side(*given, 0.125)
                if what != "forward":
                    out.sum().backward()
                taken[name].append(time.perf_counter() - began)
        found |= {f"{name}, {what}": round(statistics.median(of), 4) for name, of in taken.items()}
    found["MiB over the inputs"] = in_a_process(memory, q, k, v, keys)
    print(found)
    return found


def memory(q: Tensor, k: Tensor, v: Tensor, keys: int) -> float:
    """MiB that a forward pass takes beyond what is held already, output included."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        ways(keys)["lsh"](q, k, v, 0.125)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_a_process(work: Callable[..., float], *args: Any) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return round(pool.apply(work, args))


def window(q: Tensor, k: Tensor, v: Tensor, scale: float, size: int) -> Tensor:
    """Exact attention to the sinks and the last `size` tokens."""
    tokens, outs = k.shape[2], []
    for start in range(0, tokens, 512):
        end, near = min(start + 512, tokens), max(start - size + 1, 0)
        kept = torch.cat([torch.arange(min(lsh.SINKS, near)), torch.arange(near, end)])
        own = torch.arange(start, end)[:, None]
        seen = (kept <= own) & ((kept > own - size) | (kept < lsh.SINKS))
        outs.append(scaled_dot_product_attention(q[:, :, start:end], k[:, :, kept], v[:, :, kept], attn_mask=seen,
                                                 scale=scale, enable_gqa=True))  # fmt: skip
    return torch.cat(outs, 2)


def states(base: Base) -> list[Tensor]:
    """Queries (1, 3, TEXT, 64), keys and values (1, 1, TEXT, 64) of LAYER on a text."""
    held: list[list[Tensor]] = []

    def keep(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        held.append([q[:, :3], k[:, :1], v[:, :1]])
        return ways(0)["dense"](q, k, v, scale)

    ids, _ = next(iter(texts(base).values()))
    attending(base, keep, ids)
    return held[LAYER]


def lengthened(held: list[Tensor], tokens: int) -> list[Tensor]:
    """Repeated up to so many tokens, with noise."""
    g = torch.Generator().manual_seed(0)
    parts = [of.repeat(1, 1, -(-tokens // TEXT), 1)[:, :, :tokens] for of in held]
    return [of + 0.05 * torch.randn(of.shape, generator=g) for of in parts]


def texts(base: Base) -> dict[str, tuple[Tensor, slice]]:
    """Ids (1, TEXT) of each text, and which losses count. Of every file its last documents."""
    found = {
        f"pydoc {'+'.join(MODULES)}": "".join(
            pydoc.plain(pydoc.render_doc(importlib.import_module(m))) for m in MODULES
        )
    }
    for file in FILES:
        lines = (ROOT / f"tasks/finance/data/{file}.jsonl").read_text().splitlines()
        found[file] = "\n".join(json.loads(line)["text"] for line in lines)[-60_000:]
    every = {name: base.tokenizer(text)["input_ids"] for name, text in found.items()}
    return {name: (torch.tensor([ids[:TEXT]]), slice(None)) for name, ids in every.items()}


def copies(base: Base) -> dict[str, tuple[Tensor, slice]]:
    """Each text begins with a passage of another, and ends with the same: how well is it said again?"""
    every = {name: ids[0] for name, (ids, _) in texts(base).items()}
    names, found = list(every), {}
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        passage = every[other][4096 : 4096 + PASSAGE]
        ids = torch.cat([passage, every[name][: TEXT - 2 * PASSAGE], passage])
        found[f"{other} in {name}"] = (ids[None], slice(TEXT - PASSAGE + 31, None))
    return found


def quality(base: Base, name: str, ids: Tensor, scored: slice, keys: int) -> dict[str, Any]:
    """Perplexity of each side, and how much more than that of dense attention it is (0.01: 1 %)."""
    losses = {side: attending(base, way, ids)[scored].mean() for side, way in ways(keys).items()}
    found = {"text": name, "tokens": ids.shape[1], "keys": keys}
    found |= {f"{side}, perplexity": round(float(loss.exp()), 3) for side, loss in losses.items()}
    found |= {side: round(float((losses[side] - losses["dense"]).exp()) - 1, 4) for side in ("lsh", "window")}
    print(found)
    return found


@torch.no_grad()
def attending(base: Base, way: Callable[..., Tensor], ids: Tensor) -> Tensor:
    """Loss of each token but the first, nats, every layer attending in this way, one after the other."""

    def how(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
        return way(q, k, v, scaling).transpose(1, 2), None

    AttentionInterface.register("measured", how)
    AttentionMaskInterface.register("measured", lambda *args, **more: None)
    base.model.set_attn_implementation("measured")
    hidden = base.model.base_model(ids, use_cache=False).last_hidden_state[0]
    base.model.set_attn_implementation("sdpa")
    parts = zip(hidden[:-1].split(1024), ids[0, 1:].split(1024), strict=True)
    return torch.cat([cross_entropy(base.head(states), target, reduction="none") for states, target in parts])


if __name__ == "__main__":
    main()
