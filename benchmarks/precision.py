"""What this machine is said to be fast at, and what it takes: products of 512 tokens in float32 and bfloat16, in turns.

python benchmarks/precision.py      # seconds; → benchmarks/results/precision.json
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear

from domainkit.evaluate import versions
from domainkit.model.precision import FASTER, NATIVE, TOKENS, able, precision, speedup

RESULT = Path(__file__).parent / "results" / "precision.json"
SHAPES = ((576, 576), (576, 1536), (1536, 576), (1024, 4096))  # width in and out; the first three of the embedded base
ROUNDS = 7


def ratios(width: int, out: int) -> dict[str, float]:
    """How many times faster bfloat16 is, forward and for the input's gradient; processor time, median."""
    draw = torch.Generator().manual_seed(0)
    x, w, g = (torch.randn(shape, generator=draw) for shape in ((TOKENS, width), (out, width), (TOKENS, out)))
    taken: dict[tuple[torch.dtype, str], list[float]] = {}
    for _ in range(ROUNDS + 1):
        for dtype in (torch.float32, torch.bfloat16):
            a, b, c = x.to(dtype), w.to(dtype), g.to(dtype)
            began = time.process_time()
            linear(a, b)
            between = time.process_time()
            c @ b
            taken.setdefault((dtype, "forward"), []).append(between - began)
            taken.setdefault((dtype, "backward"), []).append(time.process_time() - between)
    middle = {key: median(times[1:]) for key, times in taken.items()}
    return {way: round(middle[torch.float32, way] / middle[torch.bfloat16, way], 2) for way in ("forward", "backward")}


def main() -> None:
    told = torch.cpu.get_capabilities()
    facts: dict[str, Any] = {
        "command": "python benchmarks/precision.py",
        "processor": told.get("cpu_name", ""),
        "instructions": [name for name in NATIVE if told.get(name)],
        "threads": torch.get_num_threads(),
        "times faster in bfloat16": {f"{width} to {out}": ratios(width, out) for width, out in SHAPES},
        "as it is measured once": round(speedup(), 2),
        "taken from": FASTER,
        "able": list(able()),
        "auto": {bits: [str(dtype).removeprefix("torch.") for dtype in precision(bits)] for bits in (4, 8, 16, 32)},
        "versions": versions(),
    }
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
