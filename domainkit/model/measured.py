"""What is measured once on each device and then known: it lies in the user's cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from domainkit.assets import cache_dir
from domainkit.files import write_text
from domainkit.types import UserError


def once(name: str, device: str, code: str, measure: Callable[[], float]) -> float:
    """The value of `name` on "cpu" or "cuda", measured where it is not known yet. code: other code is measured anew."""
    path = _path(name, device)
    known = _known(path, name, code)
    if known is not None:
        return known
    value = measure()
    known = _known(path, name, code)
    if known is not None:  # of processes that measured together the first one's counts
        return known
    with suppress(UserError):  # a cache that cannot be written: measured again next time
        write_text(path, json.dumps({name: value, "code": code}) + "\n")
    return value


def _known(path: Path, name: str, code: str) -> float | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text())
        return float(known[name]) if known["code"] == code else None
    return None


def _path(name: str, device: str) -> Path:
    """Another processor is another device; workers, which have fewer threads each, are the same as who started them."""
    if device == "cuda":
        found = torch.cuda.get_device_name()
    else:
        processor = torch.cpu.get_capabilities().get("cpu_name", "")
        found = f"{device} {processor} {torch.backends.cpu.get_cpu_capability()}"
    return cache_dir() / name / f"{'-'.join(found.lower().replace('/', ' ').split())}.json"
