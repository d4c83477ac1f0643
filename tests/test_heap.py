"""What large tensors took goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HELD = """
from pathlib import Path
import torch
from domainkit.heap import LARGE, give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

give_back()
for _ in range(2):  # a size that glibc has seen go once comes from its heap from then on
    torch.ones(2 * LARGE, dtype=torch.uint8)
before = resident()
large, small = [], []
for _ in range(20):
    large.append(torch.ones(2 * LARGE, dtype=torch.uint8))
    small.append(torch.ones(LARGE // 64, dtype=torch.uint8))
held = resident() - before
large.clear()
print(held // LARGE, (resident() - before) // LARGE)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_is_let_go_between_small_tensors_does_not_stay_with_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", HELD], check=True, capture_output=True, text=True)
    held, kept = map(int, ended.stdout.split())
    assert held >= 40 and kept <= 2
