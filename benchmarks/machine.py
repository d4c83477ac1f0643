"""What every result file says about where it came from."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from domainkit.files import write_text
from domainkit.versions import versions

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, results: Any, **more: Any) -> Path:
    """Write results/<name>.json with command, machine and versions; returns the path."""
    machine: Mapping[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load before and after": more.pop("load", None),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }
    command = " ".join(["python", *sys.argv])
    path = RESULTS / f"{name}.json"
    text = {"command": command, "machine": machine, "versions": versions(), **more, "results": results}
    write_text(path, json.dumps(text, indent=1, ensure_ascii=False) + "\n")
    return path


def read_results(name: str) -> dict[str, Any] | None:
    """What `write_results` wrote under this name; None when it did not yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _processor() -> str:
    """Maker, family, model and name, as Linux tells them; elsewhere what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    keys = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")  # the last two on Arm
    return ", ".join(f"{key} {told[key]}" for key in keys if key in told)
