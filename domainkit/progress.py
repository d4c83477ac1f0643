"""Progress bars on stderr: tokens per second and time left; plain lines when nobody watches a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET = 15.0  # seconds between lines when stderr is not a terminal


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar over `total` tokens; the yielded function takes the tokens just done and, optionally, a note.

    >>> with bar("trunk", 100) as advance: advance(40, "shard 1")
    """
    if total <= 0:
        yield lambda tokens, note="": None
    elif sys.stderr.isatty():
        yield from _rich(title, total)
    else:
        yield from _plain(title, total)


def say(line: str) -> None:
    """One line to the person watching."""
    print(line, file=sys.stderr, flush=True)


def _rich(title: str, total: int) -> Iterator[Callable[..., None]]:
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

        def advance(tokens: int, note: str = "") -> None:
            progress.advance(task, tokens)
            done = progress.tasks[task].completed
            progress.update(task, speed=f"{done / (time.perf_counter() - began):,.0f} tokens/s", note=note)

        yield advance


def _plain(title: str, total: int) -> Iterator[Callable[..., None]]:
    began = last = time.perf_counter()
    done = 0

    def advance(tokens: int, note: str = "") -> None:
        nonlocal last, done
        done += tokens
        now = time.perf_counter()
        if now - last >= QUIET or (tokens and done >= total):
            last = now
            speed = done / max(now - began, 1e-9)
            left = (total - done) / max(speed, 1e-9)
            say(f"{title}: {done:,} of {total:,} tokens, {speed:,.0f} tokens/s, {left:,.0f} s left {note}".rstrip())

    yield advance
