"""What follows from an estimate on this machine, and both for people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import psutil
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from domainkit import memory, ranks
from domainkit.estimate import Estimate
from domainkit.spec import Training

ROOM = 0.9  # of the memory that a run may take: the system and other programs need the rest
LARGEST = 16  # times the batch that is set: beyond, steps are too few to learn from
SHARE = 0.5  # of the free memory that a training step may work with


@dataclass(frozen=True)
class Machine:
    """What a run may take."""

    memory: int  # bytes
    cores: int

    @classmethod
    def here(cls) -> Machine:
        """This one, or what its container is given."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(memory.total(), cores)

    @property
    def room(self) -> int:
        return int(ROOM * self.memory)


def at_once(row: int, batch: int, beside: int = 0) -> int:
    """How many of a step's rows to compute at once: what half of the memory that is free now holds, at least one.

    row: bytes that a step of one row works with; beside: those that will be taken by then.
    """
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    else:
        free = min(memory.free(), Machine.here().room - psutil.Process().memory_info().rss)
        free //= ranks.beside()
    return max(1, min(batch, int(SHARE * (free - beside)) // max(1, row)))


@dataclass(frozen=True)
class Advice:
    """Settings that suit the machine."""

    bits: int | None  # the most that fit; None: none do
    stream: bool  # whether the trunk has to run layer by layer
    rows: int  # of a training step that fit at once, looked at up to LARGEST times what is set; 0: not one does
    workers: int  # processes for the trunk, each with its own base, beside the one that starts them; 0: not one fits


def advise(estimate: Estimate, machine: Machine) -> Advice:
    """What follows from the figures."""
    fit = [bits for bits, needed in estimate.needed.items() if needed <= machine.room]
    training, step = estimate.training, max(1, estimate.batch)
    trained = [phase.needed for phase in estimate.phases if phase.name == "train the top"]
    spare = machine.room - max(trained, default=machine.room) + step
    rows = int(spare * (training.micro_batch or training.batch) / step) if trained else training.batch
    rows = max(0, min(rows, LARGEST * training.batch))
    bases = machine.room // max(1, estimate.trunk)
    workers = max(1, min(machine.cores, bases - 1)) if bases else 0
    return Advice(max(fit, default=None), not fit and estimate.streamed <= machine.room, rows, workers)


def lines(estimate: Estimate, machine: Machine) -> Iterator[str]:
    """The advice in words."""
    advice, training = advise(estimate, machine), estimate.training
    needed = ", ".join(f"{bits} bits {_gb(size)}" for bits, size in sorted(estimate.needed.items()))
    yield f"memory needed: {needed}"
    yield f"memory here: {_gb(machine.memory)}, of which a run may take {ROOM:.0%}"
    if advice.bits is None:
        streamed = f"{training.bits} with the layers on disk, one at a time, take {_gb(estimate.streamed)}"
        yield f"bits: none fit; {streamed}" + (
            ": --set stream=always" if advice.stream else ", which is too much as well"
        )
    elif training.bits > advice.bits:
        yield f"bits: {training.bits} do not fit, {advice.bits} do: --set bits={advice.bits}"
    else:
        yield f"bits: {training.bits} fit" + (f", {advice.bits} would" if advice.bits > training.bits else "")
    yield _batch(advice.rows, training)
    if not advice.workers:
        yield "workers: not one for the trunk fits"
        return
    told = f" (--workers {advice.workers})" if advice.workers > 1 else ""
    cores = f"{max(1, machine.cores // advice.workers)} of {machine.cores} cores each"
    yield f"workers: {advice.workers} for the trunk{told}, {_gb(estimate.trunk)} and {cores}"


def _batch(fit: int, training: Training) -> str:
    """fit: rows of a training step that would fit at once."""
    asked = f"batch: {training.batch} rows of {training.context:,} tokens"
    if not fit:
        return f"{asked}: not one fits; --set context=… with a smaller number"
    more = f", up to {fit} would" if fit > training.batch else ""
    together = min(training.micro_batch or training.batch, fit)
    if together >= training.batch:
        return f"{asked} fit at once{more}"
    parts = ceil(training.batch / together)
    return f"{asked}, {together} at once{more}: a step is put together from {parts} micro-batches"


def shown(estimate: Estimate, machine: Machine) -> Group:
    """All of it, for people."""
    facts, phases = Table.grid(padding=(0, 2)), Table("phase", "peak", "of it files", "time", box=None, pad_edge=False)
    for row in _facts(estimate):
        facts.add_row(*row)
    for phase in estimate.phases:
        time = "" if phase.seconds is None else f"about {_duration(phase.seconds)}"
        phases.add_row(phase.name, _gb(phase.peak), _gb(phase.mapped) if phase.mapped else "", time)
    for column in phases.columns[1:]:
        column.justify = "right"
    said = [Text(line) for line in lines(estimate, machine)]
    return Group(facts, Text(), phases, Text(f"peak: {_gb(estimate.peak)}"), Text(), *said)


def _facts(estimate: Estimate) -> Iterator[Sequence[str]]:
    data = estimate.data
    yield (
        "base",
        f"{estimate.base}: {estimate.parameters:,} parameters, "
        f"{_gb(estimate.weights)} in {estimate.training.bits} bits",
    )
    if estimate.on_disk:
        yield "on disk", f"{estimate.on_disk} layers, one at a time in memory"
    yield "trained", f"{estimate.learning:,} parameters"
    if estimate.rows:
        yield "glossary", f"{estimate.rows:,} numbers in the rows of its new tokens"
    for name, (train, test) in data.sequences.items():
        yield f"task {name}", f"{train:,} sequences to train on, {test:,} to test on"
    yield "trunk", f"{data.tokens:,} tokens once, " + ("as given with --tokens" if data.given else "counted")
    yield "top", f"{sum(data.trained.values()):,} tokens in all epochs"
    kind = "float32" if estimate.training.activations == "float32" else "float16; twice that if it proves too coarse"
    yield "disk", f"{estimate.disk / 1e6:,.1f} MB of activations ({kind})"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
