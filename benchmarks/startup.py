"""Seconds that `domainkit --help` takes, beside an empty Python: median of several runs, taken in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from machine import write_results

RUNS = 9


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    commands = {
        "domainkit --help": [sys.executable, "-m", "domainkit", "--help"],
        "python -c ''": [sys.executable, "-c", ""],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            times[name].append(seconds(command))
    results = {name: {"median": statistics.median(all_), "max": max(all_)} for name, all_ in times.items()}
    print(results, "→", write_results("startup", results))


if __name__ == "__main__":
    main()
