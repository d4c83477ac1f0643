"""The tools that peers.py runs: what their users write, what they are called with, and the environments they need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from domainkit.assets import cache_dir

HERE, ENVIRONMENTS = Path(__file__).parent / "peers", cache_dir() / "peers"


@dataclass(frozen=True)
class Side:
    """One tool. `{bits}`, `{epochs}`, `{dtype}` and `{fast}` in its command stand for what is asked of all."""

    name: str
    files: tuple[str, ...]  # that its user writes, in benchmarks/peers
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()  # what pip is asked for; nothing: the environment that this runs in
    more: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # bits → rest of the command; absent: cannot
    idle: tuple[str, ...] = ()  # what it imports and text does not need: empty modules where PyPI's do not load


SCRIPT = dict.fromkeys((4, 32), ("{bits}", "{epochs}", "{dtype}"))
SIDES = (
    Side("plain PEFT + Trainer", ("with_plain.py",), ("python", "with_plain.py"), more=SCRIPT),
    Side("TRL", ("with_trl.py",), ("python", "with_trl.py"), ("trl", "peft", "bitsandbytes"), SCRIPT),
    Side(
        "LLaMA-Factory", ("with_llamafactory.sh", "with_llamafactory.yaml"), ("sh", "with_llamafactory.sh"),
        ("llamafactory", "bitsandbytes"),
        {4: ("num_train_epochs={epochs}", "quantization_bit=4", "bf16={fast}"), 32: ("num_train_epochs={epochs}",)},
        ("torchaudio",),
    ),
    Side("Unsloth", ("with_unsloth.py",), ("python", "with_unsloth.py"), ("unsloth",), SCRIPT),
    Side(
        "torchtune", ("with_torchtune.yaml", "torchtune_parts.py"),
        ("tune", "run", "lora_finetune_single_device", "--config", "with_torchtune.yaml"),
        ("torchtune", "torchao==0.10.0"),  # the last torchao that the last torchtune can import
        {32: ("epochs={epochs}",)},
    ),
)  # fmt: skip
OURS = Side("domainkit", ("with_domainkit.sh",), ("sh", "with_domainkit.sh"))


def environment(side: Side) -> Path:
    """The `bin` folder of the Python environment that a side runs in."""
    return ENVIRONMENTS / side.name / "bin" if side.needs else Path(sys.executable).parent


def install(side: Side) -> str:
    """Build a peer's environment; returns the error, "" when all went well."""
    import torch

    venv.create(ENVIRONMENTS / side.name, with_pip=True, clear=True)
    pip = [str(environment(side) / "python"), "-m", "pip"]
    version = torch.__version__.partition("+")[0]
    done = subprocess.run(
        [*pip, "install", "--quiet", f"torch=={version}", *side.needs], capture_output=True, text=True
    )
    (ENVIRONMENTS / side.name / "install.log").write_text(done.stderr)
    if "+cpu" in torch.__version__:  # PyPI's belong to its own torch, and imports fail beside another
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio"], capture_output=True)
        for name in side.idle:
            (next(environment(side).parent.glob("lib/python*/site-packages")) / f"{name}.py").touch()
    return first_error(done.stderr) if done.returncode else ""


def missing(side: Side) -> str:
    """Why a side cannot run here, "" when it can."""
    if side.needs and not (environment(side) / "python").exists():
        return f'not installed (python benchmarks/peers.py --install "{side.name}")'
    log = ENVIRONMENTS / side.name / "install.log"
    error = first_error(log.read_text()) if log.exists() else ""
    return f"not installed: {error}" if error.startswith("ERROR") else ""


def first_error(text: str) -> str:
    """The line that says what went wrong: pip's first ERROR, or the last line that names an exception."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    pip = [line for line in lines if line.startswith("ERROR")]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (pip[:1] or raised[-1:] or lines[-1:] or ["no word of why"])[0][:200]


def lines(side: Side) -> int:
    """Lines that the user writes: neither blank nor comments."""
    text = [line.strip() for name in side.files for line in (HERE / name).read_text().splitlines()]
    return sum(1 for line in text if line and not line.startswith("#"))


def versions(side: Side) -> dict[str, str]:
    """Of what a peer runs on."""
    ask = "import importlib.metadata as m, sys, json; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    names = [re.split("[=<>]", need)[0] for need in ("torch", "transformers", *side.needs)]
    done = subprocess.run([str(environment(side) / "python"), "-c", ask, *names], capture_output=True, text=True)
    return json.loads(done.stdout or "{}")
