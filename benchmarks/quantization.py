"""What each quantization of the base costs and saves: bytes, perplexity, next tokens, task scores.

    python benchmarks/quantization.py splits   # ways to pack, each part for itself, on the text they were chosen on
    python benchmarks/quantization.py text     # the base in 32, 8 and 4 bits and packed, on other text
    python benchmarks/quantization.py tasks RUN…  # scores of finished runs: in float32 first, then on other bases
    python benchmarks/quantization.py speed    # CPU seconds of reading a text, and of writing a token
    python benchmarks/quantization.py shape    # bytes of a 7B decoder, from its config

`--quick`: less text. `--sides`: some of the sides. `splits` rounds the weights in place and computes in float32; the
others load what a user would. `splits` reads the first documents of two shipped files, as packing does of four; `text`
the last ones of some of these and others, which nothing was packed for or chosen on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from texts import texts
from torch import Tensor, nn
from transformers import DynamicCache

from domainkit.assets import ROOT
from domainkit.model.base import Base, load_base
from domainkit.model.bases import resolve
from domainkit.model.outline import outline, size
from domainkit.model.packed import block_for
from domainkit.model.quantize import moment_of, quantize
from domainkit.nets.affine import pack, row_bytes, unpack
from domainkit.nets.loss import token_logprobs
from domainkit.report import LOWER_IS_BETTER

NAME = "smollm2-135m"
SIDES = {"float32": 32, "8 bits": 8, "4 bits (NF4)": 4, "packed": 4}
TEXTS = ("pydoc", "fed", "cfpb", "statutes-finance", "general-en")
ROUNDS = 3
LLAMA_7B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "tie_word_embeddings": False,
}  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("part", choices=("splits", "text", "tasks", "speed", "shape"))
    parser.add_argument("runs", type=Path, nargs="*", help="folders of finished runs, for `tasks`")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--tokens", type=int, default=2048, help="of each text")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    tokens, load, name = 512 if args.quick else args.tokens, [os.getloadavg()[0]], f"quantization-{args.part}"
    with tempfile.TemporaryDirectory() as place:
        if args.part == "splits":
            rows = list(splits(tokens))
        elif args.part == "tasks":
            rows = list(tasks(args.runs))
            name += f"-{rows[0]['domain']}"
        elif args.part == "shape":
            rows = list(shape(Path(place)))
        else:
            packed = quantize(NAME, Path(place) / "packed") if "packed" in args.sides else Path()
            given = {side: packed if side == "packed" else resolve(NAME) for side in args.sides}
            rows = list((text if args.part == "text" else speed)(given, tokens))
    load.append(os.getloadavg()[0])
    print(write_results(name, rows, load=load))


# Ways to pack


@torch.no_grad()
def splits(tokens: int) -> Iterator[Row]:
    """Every way of packing layers, or embedding and head: bits a weight, and what it costs beside float32."""
    base = load_base(NAME, bits=32)
    ids = {name: _first(base, name, tokens) for name in ("fed", "general-zh")}
    exact = {name: told(base, one) for name, one in ids.items()}
    shared = base.embedding.weight
    layers = [module.weight for module in base.model.modules() if isinstance(module, nn.Linear)]
    layers, block = [weight for weight in layers if weight is not shared], block_for(base.model.config)
    moment = moment_of(resolve(NAME))
    ways: dict[str, tuple[list[Tensor], Callable[[Tensor], Tensor], float]] = {
        "layers in NF4": (layers, nf4, NF4),
        "layers in even grids": (layers, lambda w: _even(w, block), _bits(layers, block)),
        "embedding in NF4": ([shared], nf4, NF4),
        "embedding in even grids": ([shared], lambda w: _even(w, block), _bits([shared], block)),
        "embedding in even grids, for its states": (
            [shared], lambda w: _even(w, block, moment), _bits([shared], block)),
    }  # fmt: skip
    for way, (weights, rounded, bits) in ways.items():
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.copy_(rounded(weight))
        yield {"way": way, "bits a weight": round(bits, 3)} | beside(exact, base, ids)
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)


NF4 = 4 + 8 / 64 + 32 / (64 * 256)  # bits a weight


def nf4(weight: Tensor) -> Tensor:
    """Into NF4 with double quantization and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight.contiguous(), compress_statistics=True, quant_type="nf4"))


def _even(weight: Tensor, block: int, moment: Tensor | None = None) -> Tensor:
    return unpack(pack(weight, block, moment), weight.shape[1], block)


def _bits(weights: Sequence[Tensor], block: int) -> float:
    return 8 * sum(len(w) * row_bytes(w.shape[1], block) for w in weights) / sum(w.numel() for w in weights)


def _first(base: Base, name: str, tokens: int) -> Tensor:
    lines = (ROOT / f"tasks/finance/data/{name}.jsonl").read_text().splitlines()[:40]
    text = "\n".join(json.loads(line)["text"] for line in lines)
    return torch.tensor([base.tokenizer(text, verbose=False)["input_ids"][:tokens]])


# The base as it is loaded


def text(given: Mapping[str, Path], tokens: int) -> Iterator[Row]:
    """Of each side: bytes, perplexity of every text beside float32, and how often the likeliest next token is its."""
    exact: dict[str, tuple[Tensor, Tensor]] = {}
    full = 0
    for side, folder in given.items():
        base = load_base(folder, bits=SIDES[side])
        ids = texts(base, tokens, TEXTS)
        exact = exact or {name: told(base, one) for name, one in ids.items()}
        disk, memory = sum(file.stat().st_size for file in folder.glob("*.safetensors")), held(base)
        full = full or memory
        row = {"side": side, "MB on disk": round(disk / 1e6, 1), "MB in memory": round(memory / 1e6, 1),
               "1/… of float32 in memory": round(full / memory, 3), "compute": str(base.compute)}  # fmt: skip
        yield row | beside(exact, base, ids)


@torch.no_grad()
def told(base: Base, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token but the first its log-probability, and which one is the likeliest: (tokens - 1)."""
    states = base.backbone(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    weight = base.output_rows.to(states.dtype)
    likeliest = torch.cat([(part @ weight.T).argmax(-1) for part in states.split(256)])
    return token_logprobs(states, weight, ids[0, 1:]), likeliest


def beside(exact: Mapping[str, tuple[Tensor, Tensor]], base: Base, ids: Mapping[str, Tensor]) -> Row:
    """Perplexity and agreement of next tokens, text by text and in the mean."""
    found: dict[str, Row] = {}
    for name, one in ids.items():
        (before, liked), (after, likes) = exact[name], told(base, one)
        found[name] = {
            "perplexity": round(exp(-float(after.mean())), 3),
            "over float32": round(exp(float((before - after).mean())) - 1, 5),
            "same next token": round(float((liked == likes).float().mean()), 4),
        }
    means = {key: round(statistics.mean(row[key] for row in found.values()), 5)
             for key in ("over float32", "same next token")}  # fmt: skip
    print(means, flush=True)
    return means | {"tokens": next(iter(ids.values())).shape[1], "texts": found}


def held(base: Base) -> int:
    """Bytes of the weights as they are in memory, with what belongs to quantized ones."""
    total = sum(p.nbytes for p in base.model.parameters())
    for module in base.model.modules():
        weight = getattr(module, "weight", None)
        state, scales = getattr(weight, "quant_state", None), getattr(module, "state", None)
        if state is not None:
            total += sum(value.nbytes for value in state.as_dict().values() if isinstance(value, Tensor))
        elif (row_scales := getattr(weight, "SCB", getattr(scales, "SCB", None))) is not None:
            total += row_scales.nbytes
    return total


@torch.no_grad()
def speed(given: Mapping[str, Path], tokens: int) -> Iterator[Row]:
    """CPU seconds, median of ROUNDS in turns: all tokens of a text at once, and one more token after them."""
    bases = {side: load_base(folder, bits=SIDES[side]) for side, folder in given.items()}
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in bases}
    for _ in range(ROUNDS):
        for side, base in bases.items():
            ids = texts(base, tokens, TEXTS[:1])[TEXTS[0]]
            cache, began = DynamicCache(config=base.model.config), time.process_time()
            base.model(ids, None, None, cache, use_cache=True, logits_to_keep=1)
            read = time.process_time()
            base.model(ids[:, :1], None, None, cache, use_cache=True)
            seconds[side].append((read - began, time.process_time() - read))
    for side, found in seconds.items():
        reading, writing = (round(statistics.median(column), 3) for column in zip(*found, strict=True))
        yield {"side": side, "tokens": tokens, "reading, CPU s": reading, "a token more, CPU s": writing,
               "compute": str(bases[side].compute)}  # fmt: skip


# Runs


def tasks(runs: Sequence[Path]) -> Iterator[Row]:
    """Scores of finished runs of one domain, and what part of the first one's they are."""
    exact: dict[str, float] = {}
    asked = "name the folders of finished runs of one domain, float32 first"
    for run in runs or sys.exit(asked):
        read = [json.loads(path.read_text()) for path in sorted((run / "reports").glob("*.json"))]
        if not read:
            sys.exit(f"{run} has no reports/*.json: {asked}")
        domain, base, seed = (read[0][key] for key in ("domain", "base", "seed"))
        scores = {f"{r['task']}/{name}": score["value"] for r in read for name, score in r["scores"].items()}
        exact = exact or scores
        if scores.keys() != exact.keys():
            sys.exit(f"{run} has other scores than {runs[0]}: {asked}")
        shares = {name: round(_share(name, value, exact[name]), 4) for name, value in scores.items()
                  if not name.split("/")[1].startswith("change")}  # fmt: skip
        print(base["bits"], base.get("packed", ""), shares, flush=True)
        yield {"domain": domain, "base": base, "seed": seed, "scores": scores, "of the first": shares}


def _share(name: str, value: float, exact: float) -> float:
    """1: as good as float32."""
    lower = any(f"/{key}" in name for key in LOWER_IS_BETTER)
    return (exact / value if lower else value / exact) if exact else 1.0


# A shape


def shape(place: Path) -> Iterator[Row]:
    """Bytes of a 7B decoder's weights, by the same count that `domainkit plan` shows."""
    full = 0
    for side, bits in SIDES.items():
        told = {"quantization_config": {"quant_method": "domainkit", "block": 64}} if side == "packed" else {}
        file = place / f"{side}.json"
        file.write_text(json.dumps(LLAMA_7B | told))
        base = outline(str(file), bits=bits, attention="sdpa", context=0, spell=True)
        if told:
            assert base.packed == block_for(base.model.config)
        found = size(base, bits)
        full = full or found
        yield {"side": side, "GB": round(found / 1e9, 3), "1/… of float32": round(full / found, 3)}


if __name__ == "__main__":
    main()
