"""What a run will cost, before it runs: parameters, memory, disk and time, without the base's weights."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from domainkit import memory
from domainkit.joint import trained_tokens
from domainkit.kinds import Prepared
from domainkit.model import rows
from domainkit.model.base import BITS, Base
from domainkit.model.crossover import AT
from domainkit.model.outline import linear_maps, on_disk, size
from domainkit.model.packed import is_packed, values
from domainkit.model.precision import precision
from domainkit.model.streamed import SHARE
from domainkit.model.top import Top
from domainkit.model.trunk import TOGETHER, stored
from domainkit.rehearse import FLOAT, Need, Work
from domainkit.spec import Training

EFFICIENCY = 0.7  # of a plain matrix product's speed that a decoder layer reaches
BACKWARD = 1.5  # frozen weights: gradients of the inputs only, plus LoRA and attention
ROUNDS = 3  # times that calibrating a glossary's rows goes through the output head
LEARNS = 16  # bytes for each number that learns: itself, its gradient, and two of AdamW
UNPACKED = {4: 6, 8: 6, 16: 0, 32: 0}  # bytes for each weight of the matrix that is just being multiplied
ENGINE = 100e6  # bytes of code and tables that torch's kernels bring in once they compute
TEXT = 100  # bytes that a token takes while its text, its id and what is known of it are held


@dataclass(frozen=True)
class Data:
    """How much there is to read."""

    sequences: Mapping[str, tuple[int, int]]  # task → train, test
    tokens: int  # distinct ones, that go through the trunk once
    trained: Mapping[str, int]  # task that leads steps → tokens that the top is trained on, over all epochs
    longest: int  # tokens of the longest sequence
    back: float  # tokens that a token attends to, in the mean
    given: bool  # whether the number of tokens was given, not counted
    unread: int  # bytes that text will take which was given so, and is not here

    @classmethod
    def of(cls, prepared: Mapping[str, Prepared], training: Training, tokens: int | None = None) -> Data:
        """What the tasks have; or so many tokens, in sequences as long as they may be, shared by the tasks alike."""
        distinct = {s.digest: len(s.ids) for p in prepared.values() for s in p.sequences}
        found = sum(distinct.values())
        lengths = [training.context] if tokens else list(distinct.values())
        few = [min(n, 3 * AT // 2) for n in lengths] if training.attention == "lsh" else lengths
        back = sum(n * m for n, m in zip(lengths, few, strict=True)) / max(1, 2 * sum(lengths))
        trained = trained_tokens(prepared, training)
        if tokens:
            epoch = sum(len(s.ids) for name in trained for s in prepared[name].train)
            trained = {name: round(n * tokens / max(1, epoch)) for name, n in trained.items()}
        sequences = {n: (len(p.train), len(p.test)) for n, p in prepared.items()}
        return cls(sequences, tokens or found, trained, max(lengths, default=1), back, tokens is not None,
                   TEXT * max(0, (tokens or 0) - found))  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """One part of a run."""

    name: str
    peak: int  # bytes resident at most
    mapped: int = 0  # of them: pages of files, which the system takes back when memory is short
    seconds: float | None = None  # None: not estimated

    @property
    def needed(self) -> int:
        """Bytes that have to be there."""
        return self.peak - self.mapped


@dataclass(frozen=True)
class Estimate:
    """Times are meant to be within a factor of two on an idle machine; bytes are those of a CPU."""

    base: str
    training: Training
    data: Data
    parameters: int
    weights: int  # bytes
    learning: int  # numbers that are trained: LoRA and heads
    rows: int  # numbers in the rows of a glossary's new tokens, learned beforehand
    disk: int  # bytes of activations, at float16 unless float32 is set
    phases: tuple[Phase, ...]
    on_disk: int  # layers that stay there
    needed: Mapping[int, int]  # bits → bytes of memory, if all layers are in it
    streamed: int  # the same if those of the trunk stay on disk
    trunk: int  # bytes of a process that runs the trunk
    batch: int  # bytes that a training step works with

    @property
    def peak(self) -> int:
        """Bytes resident at most."""
        return max(phase.peak for phase in self.phases)


@dataclass(frozen=True)
class Estimator:
    """What figures are computed from. base and top: on the meta device. resident: bytes of the program without the
    data, with it, and at most while it was read."""

    base: Base
    top: Top
    training: Training
    data: Data
    work: Work
    resident: tuple[int, int, int]

    def estimate(self) -> Estimate:
        """All figures."""
        base, training = self.base, self.training
        streamed = self._streams
        phases = self._timed(self.phases(base.bits, streamed=streamed))
        parts = {phase.name: phase for phase in phases}
        return Estimate(
            base.name,
            training,
            self.data,
            size(base, 32) // FLOAT,
            size(base, base.bits),
            self._learning,
            len(base.added) * base.width * (1 if base.tied else 2),
            self._disk,
            phases,
            len(self._inside) if streamed else 0,
            {bits: max(phase.needed for phase in self.phases(bits)) for bits in BITS if bits != 8 or not base.packed},
            max(phase.needed for phase in self.phases(base.bits, streamed=True)),
            max(parts[name].needed for name in ("load the base", "trunk")),
            self.work.train.peak,
        )

    def phases(self, bits: int, *, streamed: bool = False) -> tuple[Phase, ...]:
        """The phases of a run with the base in so many bits, in their order. streamed: the trunk's layers on disk."""
        (before, now, most), work, disk = (int(ENGINE + r) for r in self.resident), self.work, self._disk
        top, unpacked, learns = size(self.base, bits, self._last), self._unpacked(bits), LEARNS * self._learning
        (loading, read), (weights, left) = self._loading(bits), self._loaded(bits)
        lowest, passing = 0, 0
        if streamed:
            weights, lowest, passing = self._streamed(bits)
            loading, read, left = weights, 0, 0
        held = now + weights
        parts = [
            ("learn the terms", work.terms, held + lowest + unpacked, left),
            ("solve heads", work.heads, held, left),
            ("trunk", work.trunk + Need(max(0, top - work.trunk.peak)), held + passing + unpacked, left),
            ("train the top", work.train, held + top + learns + unpacked + disk, left + disk),
            ("evaluate", work.evaluate, held + top + learns + unpacked + disk, left + disk),
        ]
        found = [Phase("load the base", before + loading, read), Phase("read the data", most + weights, left)]
        kept = 0  # by the process, of what earlier phases worked with
        for name, need, beside, mapped in parts:
            if need.peak:
                kept = max(kept, need.kept)
                found.append(Phase(name, beside + need.peak - need.kept + kept, mapped))
        return tuple(found)

    def _loading(self, bits: int) -> tuple[int, int]:
        """Bytes of the weights while they are loaded, the mapped files among them, and what of these can be let go."""
        weights, kept, (file, saved) = *self._sizes(bits), on_disk(self.base)
        if saved == precision(bits)[0]:  # what is not quantized stays where it is mapped
            return weights - kept + file, max(0, file - kept)
        return weights + file, file

    def _loaded(self, bits: int) -> tuple[int, int]:
        """The same from then on. Of a file of which anything is in use all stays mapped."""
        weights, kept, (file, saved) = *self._sizes(bits), on_disk(self.base)
        if saved != precision(bits)[0]:
            return weights, 0
        grown = size(self.base, bits, [self.base.embedding]) if self.base.added else 0  # a copy, no longer in the file
        return weights - kept + grown + file, max(0, file - kept + grown)

    def _sizes(self, bits: int) -> tuple[int, int]:
        """Bytes of all weights, and of those that are not quantized."""
        weights = size(self.base, bits)
        packed = linear_maps(self.base, [self.base.model]) if bits < 16 else []
        return weights, weights - sum(size(self.base, bits, [m]) for m in packed)

    def _streamed(self, bits: int) -> tuple[int, int, int]:
        """Where the trunk's layers are on disk: bytes of the others and of the largest of them; of those beside it that
        a glossary's rows are learned on; and of the states that pass a layer together."""
        base, inside = self.base, self._inside
        largest = max(size(base, bits, [layer]) for layer in inside)
        lowest = size(base, bits, inside[: rows.DEPTH])
        states = min(self.data.tokens, TOGETHER) * stored(base, self.training.depths) * FLOAT
        return size(base, bits) - size(base, bits, inside) + largest, lowest - largest, states

    @property
    def _streams(self) -> bool:
        """Whether a run, started now, would leave the trunk's layers on disk."""
        fits = size(self.base, self.base.bits) <= SHARE * memory.free()
        return self.training.stream == "always" or (self.training.stream == "auto" and not fits)

    @property
    def _inside(self) -> list[nn.Module]:
        return list(self.base.layers())[: -self.training.layers]

    @property
    def _last(self) -> list[nn.Module]:
        return list(self.base.layers())[-self.training.layers :]

    @property
    def _learning(self) -> int:
        return sum(value.numel() for value in self.top.trainable().values())

    @property
    def _disk(self) -> int:
        itemsize = 4 if self.training.activations == "float32" else 2
        return self.data.tokens * stored(self.base, self.training.depths) * itemsize

    def _unpacked(self, bits: int) -> int:
        """Bytes of the largest matrix while it is multiplied, of a packed base's output head too."""
        maps = linear_maps(self.base, self.base.layers()) + ([self.base.head] if self.base.packed else [])
        return UNPACKED[bits] * max((values(m).numel() for m in maps), default=0)

    def _timed(self, phases: Iterable[Phase]) -> tuple[Phase, ...]:
        """The phases with the seconds of those that take long."""
        rest, compute = self.base.model.dtype, self.base.compute
        compute = rest if compute.itemsize == 1 else compute  # fp8: this is a CPU's time
        products, attention = (EFFICIENCY * _flops(dtype) for dtype in (compute, rest))
        vocabulary, width = self.base.output_rows.shape
        layers, last = list(self.base.layers()), self.training.layers

        def pass_(chosen: list[nn.Module], back: float) -> float:
            """Seconds of a token in some layers, forward."""
            return (
                2 * _active(chosen, self.base.model.config) / products + len(chosen) * self._attends(back) / attention
            )

        first = pass_(layers[: rows.DEPTH], rows.CHUNK / 2)
        sample = rows.SAMPLE * rows.CHUNK
        terms = self.training.glossary_tokens * (2 + BACKWARD) * first + sample * (
            pass_(layers, rows.CHUNK / 2) + 2 * ROUNDS * vocabulary * width / attention
        )
        row = self.training.context if self.data.tokens else 0
        top = sum(self.data.trained.values()) * (1 + BACKWARD) * pass_(layers[-last:], max(row / 2, self.data.back))
        spoken = [n for name, n in self.data.trained.items() if name not in self.top.heads]
        seconds = {
            "learn the terms": terms,
            "trunk": self.data.tokens * pass_(layers[:-last], self.data.back),
            "train the top": top + 4 * vocabulary * width * sum(spoken) / attention,
        }
        return tuple(Phase(p.name, p.peak, p.mapped, seconds.get(p.name)) for p in phases)

    def _attends(self, back: float) -> float:
        """Operations of a token's attention to so many others, in one layer."""
        config: Any = self.base.model.config
        heads = int(config.num_attention_heads)
        query = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None) or self.base.width // heads
        return 2 * back * heads * (query + (getattr(config, "v_head_dim", None) or query))


def _active(modules: Iterable[nn.Module], config: Any) -> float:
    """Weights that a token is multiplied with; of routed experts those it is sent to."""
    total = 0.0
    for part in (part for module in modules for part in module.modules()):
        if is_packed(part):
            total += values(part).numel()
            continue
        for parameter in part.parameters(recurse=False):
            chosen = getattr(config, "num_experts_per_tok", None) if parameter.ndim == 3 else None
            total += parameter.numel() * (chosen / parameter.shape[0] if chosen else 1)
    return total


def _flops(dtype: torch.dtype) -> float:
    """Measured matrix-product speed here, operations per second (median of 5)."""
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * 1024**3 / float(np.median(times))
