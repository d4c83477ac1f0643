"""Score an adapted top on a task's held-out sequences and write down everything a reader needs to check it."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from domainkit.kinds import ANNOTATING, Answer, Outcome, Portion, Prepared, Reader
from domainkit.model.base import Base
from domainkit.model.ondisk import fetch
from domainkit.report import Curve, Report, Table
from domainkit.spec import Domain, Task
from domainkit.types import Example
from domainkit.versions import versions


def ask(name: str, reader: Reader, portion: Portion) -> list[Answer]:
    """What a task of the reader's finds of some of what it is tested on."""
    reader.top.eval()
    with torch.no_grad():
        return reader.kinds[name].answer(reader, portion)


def judge(name: str, reader: Reader, prepared: Prepared, answers: Sequence[Answer], *, seed: int) -> Outcome:
    """Score a task of the reader's by the answers to all that it is tested on."""
    with torch.no_grad():
        return reader.kinds[name].score(reader, prepared, answers, seed)


def settle(name: str, reader: Reader, prepared: Prepared) -> None:
    """Let a task choose, after training, on the sequences it kept from it."""
    if prepared.check:
        reader.top.train()  # so that the words judge a text they learned from by the folds without it
        reader.kinds[name].settle(reader.top_of(name), reader.batched(prepared.check), prepared.labels)


def speed(reader: Reader, examples: Sequence[Example]) -> tuple[Table, ...]:
    """How fast a reader without stored activations reads documents: entities, concepts and relations, no summaries."""
    tasks = [name for kind in ANNOTATING if kind != "summary" for name in reader.of_kind(kind)]
    if not (tasks and examples):
        return ()
    reader.top.eval()
    fetch(reader.base.layers())  # nothing else may have run them yet
    began = time.perf_counter()
    with torch.no_grad():
        reader.annotate(examples, tasks=tasks)
    seconds = (time.perf_counter() - began) / len(examples)
    facts = (("documents", len(examples)), ("characters per document", round(mean(len(e.text) for e in examples))),
             ("seconds per document", round(seconds, 3)), ("documents per second", round(1 / seconds, 2)))  # fmt: skip
    return (Table(f"Speed of {', '.join(tasks)} together, from text", ("what", "how much"), facts),)


def report(outcome: Outcome, domain: Domain, task: Task, base: Base, prepared: Prepared, **facts: Any) -> Report:
    """The report of one task. `facts`: data, adapter_sha256, seconds, seed, and curves when it was just trained."""
    return Report(
        domain=domain.name,
        task=task.name,
        kind=task.kind,
        split="test",
        examples=len({s.group for s in prepared.test}) if not prepared.labels else len(prepared.test),
        scores=outcome.scores,
        per_label=outcome.per_label,
        baseline=outcome.baseline,
        base=base.facts,
        peak_rss_mb=peak_rss_mb(),
        versions=versions(),
        summary=outcome.summary,
        title=task.title,
        tables=(*outcome.tables, *prepared.tables),
        passages=outcome.examples,
        **facts,
    )


def glossary_tables(spoken: Mapping[str, Any]) -> tuple[Table, ...]:
    """What a run's record says of the glossary's tokens, for people; nothing without a glossary."""
    if not spoken:
        return ()
    rows: list[tuple[str | int | float, ...]] = [
        ("new tokens", spoken["tokens"]),
        ("their rows, MB", spoken["megabytes"]),
        *((f"left out: {why}", count) for why, count in spoken["left_out"].items()),
        *((f"mismatch of {name} rows", round(value, 4)) for name, value in spoken["mismatch"].items()),
    ]
    return (Table(f"Glossary {spoken['name']}", ("what", "how much"), tuple(rows)),)


def training_curves(log: Sequence[Mapping[str, Any]], task: str) -> tuple[Curve, ...]:
    """Loss and gradient norm of a task, optimizer step by optimizer step; empty without a log."""
    rows = [row for row in log if row["task"] == task]
    return tuple(
        Curve(title, "step", key, {task: tuple((row["step"], row[key]) for row in rows)})
        for title, key in (("Training loss", "loss"), ("Gradient norm", "grad_norm"))
        if rows
    )


def peak_rss_mb() -> int:
    """Peak resident memory of this process, MiB. What `getrusage` says begins, on Linux, with what the process that
    started this one held."""
    with suppress(OSError):
        own = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if own:
            return int(own[1]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
