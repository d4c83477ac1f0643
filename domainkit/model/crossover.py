"""From which length on LSH attention is faster than dense attention: measured once on each device, then known.

Of dense attention the time grows with the square of the length, of LSH attention it hardly grows faster than the length
itself. So one measurement at one length tells where they meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from domainkit import nets
from domainkit.model.measured import once
from domainkit.nets.lsh import attend

AT = 8192  # tokens; nothing shorter is worth LSH
LONGEST = 131072  # tokens that take LSH on any device: what dense attention costs there, nobody waits for


@cache
def crossover(device: str, scored_in: torch.dtype) -> int:
    """Tokens, from AT to LONGEST. Measuring takes a second or two."""
    return round(once("crossover", device, _code(), lambda: measure(device, scored_in)))


@cache
def _code() -> str:
    """Another with every change of torch or of the attention itself: what was measured before is then out of date."""
    sources = [path.read_bytes() for path in sorted(Path(nets.__path__[0]).glob("*.py"))]
    return sha256(b"".join([torch.__version__.encode(), *sources])).hexdigest()


@torch.no_grad()
def measure(device: str, scored_in: torch.dtype) -> int:
    """By one key head of width 64 with three query heads."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, AT, 64, generator=g).to(device) for heads in (3, 1, 1))
    dense = _seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125, enable_gqa=True))
    lsh = _seconds(lambda: attend(q, k, v, 0.125, scored_in=scored_in))
    return meeting(dense, lsh)


def meeting(dense: float, lsh: float) -> int:
    """Where both take the same time, of the seconds that they took for AT tokens."""
    return max(AT, min(LONGEST, round(AT * lsh / dense)))


def _seconds(work: Callable[[], Tensor]) -> float:
    """The median of three, after one that does not count."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        float(work()[0, 0, -1, 0])  # on a GPU this waits for it
        taken.append(time.perf_counter() - began)
    return median(taken[1:])
