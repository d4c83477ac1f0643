"""The benchmark of kills, a few of them: whatever a run was doing, it goes on to the same files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_runs_killed_at_random_moments_go_on_to_the_same_files() -> None:
    seed = str(random.randrange(10**6))
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "5", "--seed", seed, "--dry"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, f"seed {seed}: {ended.stdout}\n{ended.stderr}"
    told = json.loads(ended.stdout)
    assert told["kills"] == 5 and "adapter_model.safetensors" in told["compared with the uninterrupted run"]
