"""The memory that there is for this process: the machine's, or what its container or batch job is given of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = Path("/proc/self/cgroup")  # see cgroups(7)
MOUNT = Path("/sys/fs/cgroup")


def total() -> int:
    """Bytes in all."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def free() -> int:
    """Bytes that can be taken now."""
    return min([psutil.virtual_memory().available, *(max(0, limit - taken) for limit, taken in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """Of each Linux control group that this process is in and that has a limit: it, and the bytes that are taken.

    Not taken are the pages of files: the system takes those back.
    """
    for folder, limit, kind in _groups():
        with suppress(OSError, ValueError, KeyError):  # no such file, or "max" in it: no limit
            held = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield int((folder / limit).read_text()), int(held[kind])


def _groups() -> Iterator[tuple[Path, str, str]]:
    """Folder, name of the limit and kind of memory, of the group and of those that it lies in. A container sees its own
    group as the outermost one, whatever path it is told."""
    with suppress(OSError):
        for line in GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root, names = MOUNT, ("memory.max", "anon")
            elif "memory" in controllers.split(","):  # version 1
                root, names = MOUNT / "memory", ("memory.limit_in_bytes", "total_rss")
            else:
                continue
            own = root / path.strip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield folder, *names
