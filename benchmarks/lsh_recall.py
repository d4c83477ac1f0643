"""Which of the keys that dense attention weighs most LSH attention reads, and how much of all weight it keeps.

    python benchmarks/lsh_recall.py

For every layer and head of the embedded base, at positions spread over a held-out text of 8,192 tokens. The
weight of a key is the gradient of the output by the key's value. Recall is of the TOP remote keys, those that neither
sinks nor blocks hold, that dense attention weighs most; only keys that are read one by one count as found, and as kept,
not what LSH reads in the mean. The states are those of dense attention in the layers below.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from machine import write_results
from texts import NAMES, TEXT, texts
from torch import Tensor
from ways import Way, attending, size

from domainkit.model.base import load_base
from domainkit.nets import lsh

TOP = 128
FIRST = 2048  # position; before it little is remote
Figures = dict[str, Tensor]  # name → (positions, heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--text", choices=NAMES, default="fed")
    parser.add_argument("--length", type=int, default=TEXT, help="tokens")
    parser.add_argument("--keys", type=int, nargs="+", default=[lsh.KEYS // 2, lsh.KEYS, lsh.KEYS * 2])
    parser.add_argument("--positions", type=int, default=32)
    args = parser.parse_args()
    load = [os.getloadavg()[0]]
    base = load_base("smollm2-135m", bits=32)
    layers: list[list[dict[str, Any]]] = []

    def keep(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        layers.append([{"layer": len(layers), **row} for row in layer(q, k, scale, args.keys, args.positions)])
        print(*layers[-1], sep="\n", flush=True)
        return Way("dense")(q, k, v, scale)

    attending(base, keep, texts(base, args.length, (args.text,))[args.text])
    rows = [row for of in layers for row in of]
    load.append(os.getloadavg()[0])
    print(write_results("lsh_recall", rows, text=args.text, tokens=args.length, top=TOP, means=means(rows), load=load))


def layer(q: Tensor, k: Tensor, scale: float, keys: Sequence[int], positions: int) -> list[dict[str, Any]]:
    """Figures of each number of keys, means over positions and heads; of the mass also that of the worst head."""
    asked = torch.linspace(min(FIRST, k.shape[2] // 2), k.shape[2] - 1, positions).long().tolist()
    rows = []
    for count in keys:
        every = [figures(q[:, :, t : t + 1], k[:, :, : t + 1], scale, count) for t in asked]
        found = {name: torch.stack([of[name] for of in every]) for name in every[0]}
        row = {"keys": count, "positions": positions} | {name: round(float(of.mean()), 4) for name, of in found.items()}
        rows.append(row | {"mass, worst head": round(float(found["mass"].mean(0).min()), 4)})
    return rows


def figures(q: Tensor, k: Tensor, scale: float, keys: int) -> Figures:
    """Of the last token's query, for every head. q: (1, heads, 1, width), k: (1, key heads, tokens, width)."""
    dense, near = weights(Way("dense"), q, k, scale), weights(Way("lsh", 0), q, k, scale) > 0
    own, remote = near | chosen(q, k, scale, keys), dense.masked_fill(near, 0.0)
    best = remote.topk(min(TOP, remote.shape[1]), 1).indices
    late = torch.arange(k.shape[2]) >= k.shape[2] - size(keys)
    late[: lsh.SINKS] = True
    return {
        "recall": own.gather(1, best).float().mean(1),
        "mass": (dense * own).sum(1),
        "remote mass": (remote * own).sum(1) / remote.sum(1).clamp(min=1e-9),
        "mass, window": (dense * late).sum(1),
        "keys read": own.sum(1).float(),
        "keys read, window": late.sum().float().expand(len(dense)),
    }


def chosen(q: Tensor, k: Tensor, scale: float, keys: int) -> Tensor:
    """(heads, tokens): whether LSH chose that key; others further back are read in the mean."""
    picked, choose = list[Tensor](), lsh._choose

    def keep(*given: Any) -> Tensor:
        picked.append(choose(*given)[:, 0])
        return picked[-1][:, None]

    with patch.object(lsh, "_choose", keep):
        Way("lsh", keys)(q, k, k, scale)
    found = torch.zeros(*k.shape[1:3], dtype=torch.bool).scatter_(1, torch.cat(picked), True)
    return found.repeat_interleave(q.shape[1] // k.shape[1], 0)


@torch.enable_grad()
def weights(way: Way, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The weight of every key: (heads, tokens). Heads of a group share the values, so each has a column of its own."""
    group = q.shape[1] // k.shape[1]
    v = torch.zeros(*k.shape[:3], group, requires_grad=True)
    out = whole(q, k, v, scale) if way.keys is None else way(q.detach(), k.detach(), v, scale)
    own = out[0, :, 0].unflatten(0, (-1, group)).diagonal(dim1=1, dim2=2).sum()
    (found,) = torch.autograd.grad(own, v)  # (1, key heads, tokens, group)
    return found[0].transpose(1, 2).flatten(0, 1)


def whole(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Dense attention of the last query: a causal mask would take it for the first."""
    k, v = (of.repeat_interleave(q.shape[1] // k.shape[1], 1) for of in (k, v))
    return ((q @ k.transpose(2, 3)) * scale).softmax(3) @ v


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the layers."""
    names = [name for name in rows[0] if name not in ("layer", "keys", "positions")]
    found = []
    for keys in dict.fromkeys(row["keys"] for row in rows):
        own = [row for row in rows if row["keys"] == keys]
        found.append({"keys": keys, **{name: round(statistics.mean(row[name] for row in own), 4) for name in names}})
    return found


if __name__ == "__main__":
    main()
