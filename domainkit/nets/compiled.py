"""Kernels for a CPU, compiled by Numba at their first call, in seconds, and kept in the user's cache.

Not imported where no kernel is used: the import takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba

from domainkit.assets import cache_dir

config: Any = numba.config
HERE = sha256(Path(__file__).read_bytes()).hexdigest()[:16]  # how kernels are compiled; of their own code Numba knows
LOOSE = {"reassoc", "contract", "nsz"}  # sums in another order, the same in every call; NaN and infinity stay


def kernel(fastmath: set[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: of functions of arrays and numbers, which then run without the interpreter's lock. Where nothing can
    be written they are compiled in each process."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        asked: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
        before = config.CACHE_DIR
        config.CACHE_DIR = before or str(cache_dir() / "kernels" / HERE)
        try:
            return numba.njit(cache=True, **asked)(function)
        except RuntimeError:  # no folder for it
            return numba.njit(**asked)(function)
        finally:
            config.CACHE_DIR = before

    return compiled
