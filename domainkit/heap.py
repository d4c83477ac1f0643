"""The heap of the C library, told to give memory back to the system."""

from __future__ import annotations

import ctypes
import sys

LARGE = 4 * 2**20  # bytes from which memory is the system's own: taken for one tensor, given back when it goes
SPARE = 64 * 2**20  # bytes that may lie free at the heap's end, so that it does not shrink and grow again all the time
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def give_back() -> None:
    """From here on give the memory of LARGE tensors back to the system as soon as they go. Where the C library is not
    glibc, nothing happens.

    By itself glibc raises that size to 32 MiB, and puts what is smaller on its heap; of the holes that go there, few
    are used again, since PyTorch asks for aligned memory. One pass through 8 layers of width 2,048 in 4 bits left
    2.3 GB of them. See mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, LARGE)
        library.mallopt(M_TRIM_THRESHOLD, SPARE)
