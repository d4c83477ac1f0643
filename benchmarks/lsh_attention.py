"""What LSH attention keeps of the embedded base's quality, beside a window that reads as many keys.

    python benchmarks/lsh_attention.py perplexity                        # on held-out texts, every layer attending so
    python benchmarks/lsh_attention.py perplexity --lengths 16384 32768  # beyond 8,192 by YaRN, all sides alike
    python benchmarks/lsh_attention.py copy --lengths 4096 8192          # on a passage that began the text and ends it
    python benchmarks/lsh_attention.py four-bit                          # {dense, LSH} x {float32, NF4}

One result file for each profile and length. `over dense` is how much more the perplexity is than that of dense
attention (0.01: 1 %). Time and memory: lsh_time.py; which keys are found: lsh_recall.py; what finished runs reach:
long_documents.py; docs/attention.md shows all.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from math import exp
from typing import Any

from machine import write_results
from texts import NAMES, TEXT, copies, texts
from torch import Tensor
from ways import Way, attending, ways

from domainkit.model.base import Base, load_base
from domainkit.nets import lsh

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("profile", choices=("perplexity", "copy", "four-bit"), nargs="?", default="perplexity")
    parser.add_argument("--lengths", type=int, nargs="+", default=[TEXT], help="tokens")
    parser.add_argument("--keys", type=int, nargs="+", default=[lsh.KEYS // 2, lsh.KEYS, lsh.KEYS * 2])
    parser.add_argument("--texts", nargs="+", choices=NAMES, default=tuple(NAMES))
    parser.add_argument("--dense-up-to", type=int, default=2**15, help="the longest text of dense attention")
    args = parser.parse_args()
    for tokens in args.lengths:
        load = [os.getloadavg()[0]]
        if args.profile == "four-bit":
            rows = list(four_bits(tokens, args.texts))
        else:
            base = load_base("smollm2-135m", bits=32)
            sides = [way for way in ways(args.keys) if way.keys is not None or tokens <= args.dense_up_to]
            given = _given(args.profile, base, tokens, args.texts)
            rows = [row for found in given for row in quality(base, sides, *found)]
        load.append(os.getloadavg()[0])
        print(write_results(f"lsh_attention-{args.profile}-{tokens}", rows, means=means(rows), load=load))


def _given(profile: str, base: Base, tokens: int, names: Sequence[str]) -> Iterator[tuple[str, Tensor, slice]]:
    """Name and ids (1, tokens) of each text, and which of its losses count."""
    if profile == "copy":
        yield from ((name, *found) for name, found in copies(base, tokens, names).items())
    else:
        yield from ((name, ids, slice(None)) for name, ids in texts(base, tokens, names).items())


def quality(base: Base, sides: Sequence[Way], name: str, ids: Tensor, scored: slice) -> list[Row]:
    """Loss and perplexity by each way of attending."""
    rows: list[Row] = []
    for way in sides:
        loss = float(attending(base, way, ids)[scored].mean())
        rows.append({"text": name, "tokens": ids.shape[1], "bits": base.bits, "way": way.name, "keys": way.keys,
                     "loss": round(loss, 5), "perplexity": round(exp(loss), 3)})  # fmt: skip
        if sides[0].keys is None:
            rows[-1]["over dense"] = round(exp(rows[-1]["loss"] - rows[0]["loss"]) - 1, 5)
        print(rows[-1], flush=True)
    return rows


def means(rows: Sequence[Row]) -> list[Row]:
    """Over the texts: of each precision and way the mean loss, and of the changes of perplexity mean and largest."""
    found = []
    for kind in dict.fromkeys((row["bits"], row["way"], row["keys"]) for row in rows):
        own = [row for row in rows if (row["bits"], row["way"], row["keys"]) == kind]
        mean = dict(zip(("bits", "way", "keys"), kind, strict=True)) | {"texts": len(own)}
        mean["loss"] = round(statistics.mean(row["loss"] for row in own), 5)
        for key in [key for key in own[0] if key.startswith("over")]:
            mean[key] = round(statistics.mean(row[key] for row in own), 5)
            mean[f"{key}, at most"] = max(row[key] for row in own)
        found.append(mean)
    return found


def four_bits(tokens: int, names: Sequence[str]) -> Iterator[Row]:
    """Dense attention and LSH on the base in float32 and in NF4, all beside dense attention in float32."""
    beside: dict[str, float] = {}
    for bits in (32, 4):
        base = load_base("smollm2-135m", bits=bits)
        for name, ids in texts(base, tokens, names).items():
            for row in quality(base, [Way("dense"), Way("lsh", lsh.KEYS)], name, ids, slice(None)):
                row["over float32 and dense"] = round(exp(row["loss"] - beside.setdefault(name, row["loss"])) - 1, 5)
                yield row


if __name__ == "__main__":
    main()
