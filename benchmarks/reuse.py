"""A second run that changes only what stands on the activations: seconds from the command to its first training step.

    python benchmarks/reuse.py [--limit 400]

`domainkit finetune finance` runs once with an empty cache, whole. Then it is started again with another learning rate,
and with another adapter, and stopped after its first step. The time begins before Python does; the only thing added to
the command is a line printed after each step.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import write_results

CHANGED = {
    "another learning rate": ("--set", "learning_rate=1e-3"),
    "another adapter": ("--set", "rank=8", "--set", "alpha=16"),
}
STEP = "step taken"


def child(line: list[str]) -> None:
    """The command, with its steps told."""
    from domainkit import cli, fit

    on_log = fit.Reporter.on_log

    def telling(*args: Any, **kwargs: Any) -> None:
        on_log(*args, **kwargs)
        print(STEP, file=sys.stderr, flush=True)

    setattr(fit.Reporter, "on_log", telling)  # noqa: B010 (mypy)
    sys.argv = ["domainkit", *line]
    cli.main()


def seconds(line: list[str], cache: Path, *, whole: bool) -> dict[str, float]:
    """Seconds to the first step and, if it may run to its end, to that."""
    command = [sys.executable, __file__, "--child", *line]
    began = time.perf_counter()
    found: dict[str, float] = {}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "DOMAINKIT_CACHE": str(cache)}) as process:  # fmt: skip
        assert process.stderr
        for told in process.stderr:
            if told.startswith(STEP) and not found:
                found["to the first step"] = round(time.perf_counter() - began, 1)
                if not whole:
                    process.send_signal(signal.SIGKILL)
            elif not told.startswith(STEP):
                print(told, end="", file=sys.stderr)
    if whole and process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    return found | ({"to the end": round(time.perf_counter() - began, 1)} if whole else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--limit", type=int, default=400, help="documents of each source")
    parser.add_argument("--repeat", type=int, default=3, help="times that each second run is started")
    args = parser.parse_args()
    from domainkit.assets import cache_dir

    bases, load = cache_dir() / "bases", [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        (cache / "bases").symlink_to(bases)
        line = ["finetune", "finance", "--limit", str(args.limit), "--out"]
        results: dict[str, Any] = {"first": seconds([*line, f"{folder}/first"], cache, whole=True)}
        shards = [path.stat().st_size for path in cache.glob("activations/*/*.safetensors")]
        results["megabytes of activations"] = round(sum(shards) / 1e6, 1)
        for name, more in CHANGED.items():
            results[name] = [
                seconds([*line, f"{folder}/{name} {i}", *more], cache, whole=False)["to the first step"]
                for i in range(args.repeat)
            ]
    load.append(os.getloadavg()[0])
    print(results, "→", write_results("reuse", results, limit=args.limit, load=load))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
