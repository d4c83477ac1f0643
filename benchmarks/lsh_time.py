"""Time and peak memory of LSH attention by length, beside dense attention and a window that reads as many keys.

    python benchmarks/lsh_time.py group    # three query heads on one key head of 64
    python benchmarks/lsh_time.py layer    # all heads of a layer of the embedded base: nine on three
    python benchmarks/lsh_time.py base     # the whole embedded base, forward, as `load_base` gives it

`group` and `layer` take the queries, keys and values that the base has in a middle layer on a real text, repeated
beyond its 8,192 positions, with noise. The sides take turns in one process, the median of three rounds counts (what
takes over a minute is done once); memory is that of a fresh process. `base` loads `attention="sdpa"` and "lsh" in
turns, each time in a fresh process, and also tells the seconds spent in attention alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_results
from memory import alone, peak
from safetensors.torch import load_file, save_file
from texts import TEXT, texts
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from ways import Way, attending, in_turns, seconds, stretch, ways

from domainkit.model.attention import scored_in
from domainkit.model.base import load_base
from domainkit.model.crossover import crossover
from domainkit.nets import lsh

LENGTHS = {"group": tuple(2**n for n in range(11, 18)), "layer": tuple(2**n for n in range(11, 18)),
           "base": (8192, 16384, 32768)}  # fmt: skip
HEADS = {"group": (3, 1), "layer": (9, 3)}  # of queries and of keys
PASSES = ("forward", "forward and backward")
LAYER, SCALE = 12, 0.125
FITTED = 8192  # tokens from which the exponent is fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("profile", choices=LENGTHS, nargs="?", default="group")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens")
    parser.add_argument("--keys", type=int, nargs="+", default=[lsh.KEYS // 2, lsh.KEYS, lsh.KEYS * 2])
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 4], help="of the base; for `base`")
    parser.add_argument("--dense-up-to", type=int, default=2**17, help="the longest text of dense attention")
    args = parser.parse_args()
    lengths = args.lengths or LENGTHS[args.profile]
    facts: dict[str, Any] = {"threads": torch.get_num_threads()}
    load = [os.getloadavg()[0]]
    if args.profile == "base":
        rows = [row for bits in args.bits for n in lengths for row in of_the_base(bits, n)]
        facts["crossover"] = crossover("cpu", scored_in("cpu"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            held = states(Path(folder), *HEADS[args.profile])
            rows = [row for n in lengths for row in of_attention(held, n, args.keys, args.dense_up_to)]
        facts["exponents"] = exponents(rows)
    load.append(os.getloadavg()[0])
    print(write_results(f"lsh_time-{args.profile}", rows, **facts, load=load))


def of_attention(held: Path, tokens: int, keys: Sequence[int], dense_up_to: int) -> list[dict[str, Any]]:
    """Seconds and MiB of each way at this length, forward and with the backward pass."""
    sides = [way for way in ways(keys) if way.keys is not None or tokens <= dense_up_to]
    rows = [{"tokens": tokens, "way": way.name, "keys": way.keys, **alone(memory, held, tokens, way)} for way in sides]
    given = lengthened(held, tokens)
    for name in PASSES:
        works = [partial(done, way, given, name) for way in sides]
        taken = in_turns([partial(seconds, work) for work in works])
        for row, of in zip(rows, taken, strict=True):
            row |= {name: round(statistics.median(of), 5), f"{name}, rounds": len(of)}
            if sides[0].keys is None:
                row[f"{name}, times as fast as dense"] = round(rows[0][name] / row[name], 2)
    for row in rows:
        print(row, flush=True)
    return rows


def done(way: Way, given: Sequence[Tensor], name: str) -> Tensor | tuple[Tensor, ...]:
    """The output of the forward pass, else the gradients."""
    q, k, v = (of.detach().requires_grad_(name != "forward") for of in given)
    out = way(q, k, v, SCALE)
    return out if name == "forward" else torch.autograd.grad(out.sum(), (q, k, v))


def memory(held: Path, tokens: int, way: Way) -> dict[str, Any]:
    """MiB over the inputs, which are made here, of each pass."""
    given, found = lengthened(held, tokens), {}
    for name in PASSES:
        done(way, [of[:, :, :1024] for of in given], name)
        found[f"{name}, MiB"] = peak(partial(done, way, given, name))
    return found


def states(folder: Path, heads: int, key_heads: int) -> Path:
    """A file of the queries (1, heads, TEXT, 64), keys and values (1, key heads, TEXT, 64) of LAYER on a text."""
    base = load_base("smollm2-135m", bits=32)
    seen: list[Sequence[Tensor]] = []

    def keep(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append((q[:, :heads], k[:, :key_heads], v[:, :key_heads]) if len(seen) == LAYER else ())
        return Way("dense")(q, k, v, scale)

    attending(base, keep, texts(base, TEXT, ("fed",))["fed"])
    save_file(dict(zip("qkv", (of.contiguous() for of in seen[LAYER]), strict=True)), folder / "states.safetensors")
    return folder / "states.safetensors"


def lengthened(held: Path, tokens: int) -> list[Tensor]:
    """Repeated up to so many tokens, with noise."""
    draw, parts = torch.Generator().manual_seed(0), load_file(held)
    repeated = [parts[name].repeat(1, 1, -(-tokens // TEXT), 1)[:, :, :tokens] for name in "qkv"]
    return [of + 0.05 * torch.randn(of.shape, generator=draw) for of in repeated]


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the time by length, by least squares over the logarithms, from FITTED to the longest."""
    found = []
    for way, keys in dict.fromkeys((row["way"], row["keys"]) for row in rows):
        own = [row for row in rows if (row["way"], row["keys"]) == (way, keys) and row["tokens"] >= FITTED]
        if len(own) > 1:
            fits = {name: _slope([row["tokens"] for row in own], [row[name] for row in own]) for name in PASSES}
            found.append({"way": way, "keys": keys, "up to": own[-1]["tokens"], **fits})
    return found


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)


def of_the_base(bits: int, tokens: int) -> list[dict[str, Any]]:
    """Seconds, seconds in attention and MiB of a forward pass: by dense attention and by LSH."""
    sides = ("sdpa", "lsh")
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in sides}

    def once(side: str) -> float:
        seen[side].append(alone(forward, bits, side, tokens))
        return seen[side][-1]["seconds"]

    in_turns([partial(once, side) for side in sides])
    rows: list[dict[str, Any]] = []
    for side in sides:
        medians = {key: statistics.median(of[key] for of in seen[side]) for key in seen[side][0]}
        rows.append({"bits": bits, "tokens": tokens, "attention": side, "rounds": len(seen[side]), **medians})
        for key in ("seconds", "seconds in attention"):
            rows[-1][f"{key}, times as fast as sdpa"] = round(rows[0][key] / rows[-1][key], 2)
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def forward(bits: int, attention: str, tokens: int) -> dict[str, float | None]:
    """Of the base without its output head, on a real text."""
    base = load_base("smollm2-135m", bits=bits, attention=attention)
    ids = texts(base, tokens, ("fed",))["fed"]
    stretch(base, tokens)
    base.backbone(ids[:, :1024], use_cache=False)
    inside, whole = clocked(attention), list[float]()
    run = partial(base.backbone, ids, use_cache=False)
    found = peak(lambda: whole.append(seconds(run)))
    return {"seconds": round(whole[0], 2), "seconds in attention": round(sum(inside), 2), "MiB": found}


def clocked(attention: str) -> list[float]:
    """Seconds of every later call of the attention of this name."""
    inner: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[attention]
    taken: list[float] = []

    def timed(*args: Any, **more: Any) -> Any:
        kept: list[Any] = []
        taken.append(seconds(lambda: kept.append(inner(*args, **more))))
        return kept[0]

    AttentionInterface.register(attention, timed)
    return taken


if __name__ == "__main__":
    main()
