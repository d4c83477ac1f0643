"""Progress bars on stderr: how much a second and time left; plain lines when nobody watches a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from domainkit import ranks

QUIET = 15.0  # seconds between lines when stderr is not a terminal


@contextmanager
def bar(title: str, total: int, unit: str = "tokens") -> Iterator[Callable[..., None]]:
    """A bar over `total` tokens, or another unit; the yielded function takes those just done and, optionally, a note.

    >>> with bar("trunk", 100) as advance: advance(40, "shard 1")
    """
    if total <= 0 or not ranks.leads():
        yield lambda count, note="": None
    elif sys.stderr.isatty():
        yield from _rich(title, total, unit)
    else:
        yield from _plain(title, total, unit)


def say(line: str) -> None:
    """One line to the person watching, however many processes have something to say."""
    if ranks.leads():
        print(line, file=sys.stderr, flush=True)


def _rich(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, speed="", note="")
        began = time.perf_counter()

        def advance(count: int, note: str = "") -> None:
            progress.advance(task, count)
            done = progress.tasks[task].completed
            progress.update(task, speed=_rate(done / (time.perf_counter() - began), unit), note=note)

        yield advance


def _plain(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    began = last = time.perf_counter()
    done = 0

    def advance(count: int, note: str = "") -> None:
        nonlocal last, done
        done += count
        now = time.perf_counter()
        if now - last >= QUIET or (count and done >= total):
            last = now
            speed = done / max(now - began, 1e-9)
            left = max(total - done, 0) / max(speed, 1e-9)
            told = f"{title}: {done:,} of {total:,} {unit}, {_rate(speed, unit)}, {left:,.0f} s left {note}"
            say(told.rstrip())

    yield advance


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.{0 if speed >= 100 else 1}f} {unit}/s"
