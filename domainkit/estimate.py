"""What a run will cost, before it runs: tokens, memory, disk and time (for `--dry-run`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from domainkit.joint import trained_tokens
from domainkit.kinds import Prepared
from domainkit.model.base import Base
from domainkit.model.rows import DEPTH
from domainkit.model.trunk import BATCH, TOGETHER
from domainkit.nets.loss import BLOCK
from domainkit.spec import Training

RUNTIME = 0.6e9  # bytes: Python with torch, transformers and bitsandbytes loaded
EFFICIENCY = 0.7  # of a plain matrix product's speed that a decoder layer reaches
BACKWARD = 1.5  # frozen weights: gradients of the inputs only, plus LoRA and attention
LONG = 45  # numbers per token and unit of width that two layers hold while they learn from one long sequence


@dataclass(frozen=True)
class Estimate:
    """Rough figures; times within a factor of two on an idle machine. Attention is not in them: to sequences of many
    thousands of tokens it adds more than that."""

    sequences: Mapping[str, tuple[int, int]]  # task → train, test
    new_tokens: int  # of the glossary
    trunk_tokens: int  # distinct tokens that go through the trunk once
    top_tokens: int  # tokens the top is trained on, over all epochs
    memory: int  # bytes, peak
    disk: int  # bytes of activations, at float16
    terms_seconds: float  # to learn the rows of the new tokens
    trunk_seconds: float
    top_seconds: float

    def lines(self) -> list[str]:
        """For people."""
        tasks = [f"task {n}: {a:,} sequences to train on, {b:,} to test on" for n, (a, b) in self.sequences.items()]
        terms = [f"glossary: {self.new_tokens:,} new tokens, about {self.terms_seconds:,.0f} s to learn their rows"]
        return [
            *tasks,
            *(terms if self.new_tokens else []),
            f"trunk: {self.trunk_tokens:,} tokens once, about {self.trunk_seconds:,.0f} s",
            f"top: {self.top_tokens:,} tokens in all epochs, about {self.top_seconds:,.0f} s",
            f"memory: about {self.memory / 1e9:.1f} GB at the peak",
            f"disk: {self.disk / 1e6:,.0f} MB of activations (float16; twice that if float16 proves too coarse)",
        ]


def estimate(base: Base, prepared: Mapping[str, Prepared], training: Training) -> Estimate:
    """Count what is known (tokens, bytes), time a matrix product, and multiply."""
    distinct = {s.digest: len(s.ids) for p in prepared.values() for s in p.sequences}
    trained = trained_tokens(prepared, training)
    layer = sum(_size(p) for p in base.layers()[-1].parameters())
    vocabulary, width = base.head.weight.shape
    speed = EFFICIENCY * _flops(base.compute)
    terms = 2 * layer * DEPTH * (2 + BACKWARD) * training.glossary_tokens if base.added else 0
    trunk = 2 * layer * (base.depth - training.layers) * sum(distinct.values())
    top = 2 * layer * training.layers * (1 + BACKWARD) * sum(trained.values())
    top += sum(4 * vocabulary * width * tokens for name, tokens in trained.items() if not prepared[name].labels)
    longest = max(distinct.values(), default=0)
    working = max(BATCH * width * 4 * 12, BLOCK * vocabulary * 4 * 2 + training.batch_tokens * width * 4 * 60,
                  longest * width * 4 * LONG)  # fmt: skip
    return Estimate(
        {n: (len(p.train), len(p.test)) for n, p in prepared.items()},
        len(base.added),
        sum(distinct.values()),
        sum(trained.values()),
        int(RUNTIME + _resident(base, training) + working),
        sum(distinct.values()) * width * (len(training.depths) + 1) * 2,
        terms / speed,
        trunk / speed,
        top / speed,
    )


def _resident(base: Base, training: Training) -> int:
    """Bytes of the base's weights in memory; of layers on disk, one at a time, and what is on its way through them."""
    here = sum(p.numel() * p.element_size() for p in base.model.parameters() if not p.is_meta)
    if not base.streamed:
        return here
    one = sum(p.numel() * p.element_size() for p in base.layers()[-1].parameters())
    return here + one + TOGETHER * base.width * 4 * (len(training.depths) + 1)


def _size(parameter: torch.nn.Parameter) -> int:
    """Weights in a parameter; bitsandbytes packs two 4-bit ones into a byte."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def _flops(dtype: torch.dtype) -> float:
    """Measured matrix-product speed here, operations per second (median of 5)."""
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * 1024**3 / float(np.median(times))
