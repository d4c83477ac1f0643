"""Peak memory of a piece of work, beyond what its process holds already. Linux."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(work: Callable[[], Any]) -> float | None:
    """MiB that are resident at most while it works, results included, beyond those resident before; None where that
    is not told. What the work needs once (libraries, threads) should have been called before."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed room that is still resident would be used unseen
        RESET.write_text("5")  # the high-water mark falls to what is resident now: man 5 proc
        before = _mebibytes("VmRSS")
    except (OSError, AttributeError) as error:
        print(f"peak memory is told by Linux with glibc only: {error}")
        work()
        return None
    kept = work()
    after = _mebibytes("VmHWM")
    del kept
    return round(after - before, 1)


def alone(work: Callable[..., Any], *args: Any) -> Any:
    """What it returns in a fresh process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def _mebibytes(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
