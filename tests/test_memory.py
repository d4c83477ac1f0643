"""What memory there is, where a container or a batch job has a share of the machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from domainkit import memory

GB = 10**9
V1, V2 = ("memory.limit_in_bytes", "total_rss"), ("memory.max", "anon")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """64 GB, 40 of them free, no control groups yet; returns where those are mounted."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=40 * GB))
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MOUNT", tmp_path / "mount")
    return tmp_path / "mount"


def group(folder: Path, names: tuple[str, str], limit: str, taken: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(f"cache {5 * GB}\n{names[1]} {taken}\nfile {5 * GB}\n")


def told(machine: Path, text: str) -> tuple[int, int]:
    (machine.parent / "cgroup").write_text(text)
    return memory.total() // GB, memory.free() // GB


def test_without_control_groups_it_is_the_machine_s(machine: Path) -> None:
    assert (memory.total(), memory.free()) == (64 * GB, 40 * GB)  # another system than Linux
    assert told(machine, "0::/user\n5:cpu:/\n") == (64, 40)  # none of them has files


@pytest.mark.parametrize(("names", "line", "root"), [(V2, "0::{}", ""), (V1, "4:cpuacct,memory:{}", "memory")])
def test_a_share_is_all_there_is(machine: Path, names: tuple[str, str], line: str, root: str) -> None:
    """Files of which pages are in memory take nothing."""
    group(machine / root, names, str(8 * GB), 3 * GB)  # a container sees its own group here, whatever it is told
    assert told(machine, line.format("/kubepods/pod7") + "\n") == (8, 5)
    assert told(machine, line.format("/") + "\n") == (8, 5)


@pytest.mark.parametrize(("names", "line", "root"), [(V2, "0::{}", ""), (V1, "4:memory:{}", "memory")])
def test_the_narrowest_of_groups_in_groups_counts(machine: Path, names: tuple[str, str], line: str, root: str) -> None:
    group(machine / root / "slurm", names, str(6 * GB), 5 * GB)
    group(machine / root / "slurm/job1", names, "max", GB)
    group(machine / root / "slurm/job1/step0", names, str(4 * GB), GB)
    group(machine / root / "other", names, str(GB), 0)
    assert told(machine, line.format("/slurm/job1/step0") + "\n") == (4, 1)
    assert told(machine, line.format("/slurm/job1") + "\n") == (6, 1)


def test_what_is_beyond_its_limit_has_nothing_left(machine: Path) -> None:
    group(machine, V2, str(GB), 2 * GB)
    assert told(machine, "0::/\n") == (1, 0)


def test_version_1_without_a_limit_names_a_huge_one(machine: Path) -> None:
    group(machine / "memory", V1, "9223372036854771712", GB)
    assert told(machine, "4:memory:/\n") == (64, 40)
