"""A checkpoint is whole or not there, and what is read back is what was written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from domainkit import checkpoint
from domainkit.checkpoint import KEPT, MANIFEST, clear, damage, newest, publish

FILES = {"model.safetensors": b"weights" * 999, "optimizer.pt": b"moments" * 999, "deep/state.json": b"{}"}


def write(folder: Path, step: int) -> Path:
    """A checkpoint as the Trainer leaves it, not published yet."""
    draft = folder / checkpoint.DRAFT / f"checkpoint-{step}"
    for name, content in FILES.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_bytes(content + str(step).encode())
    return draft


def made(folder: Path, *steps: int) -> Path:
    for step in steps:
        publish(write(folder, step), folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_published_checkpoint_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    (found,) = made(tmp_path, 7).glob("checkpoint-*")
    listed = json.loads((found / MANIFEST).read_text())
    assert listed == {name: sha256(content + b"7").hexdigest() for name, content in FILES.items()}
    assert damage(found) == "" and newest(tmp_path) == found


def test_the_newest_are_kept_by_their_number(tmp_path: Path) -> None:
    made(tmp_path, 8, 9, 10, 100)
    assert KEPT == 2 and names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    assert newest(tmp_path) == tmp_path / "checkpoint-100"


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, manifest, their names; then the checkpoint's own name, and that too."""
    done: list[str] = []
    replace, fsync = os.replace, os.fsync

    def renaming(source: Any, target: Any) -> None:
        done.append(f"name {Path(target).name}")
        replace(source, target)

    def forcing(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which file is forced to disk")
    monkeypatch.setattr(os, "replace", renaming)
    monkeypatch.setattr(os, "fsync", forcing)
    made(tmp_path, 3)
    last = done.index("name checkpoint-3")
    assert {"deep", *(Path(name).name for name in FILES)} <= set(done[:last])
    assert done[last - 2 :] == [f"name {MANIFEST}", "checkpoint-3", "name checkpoint-3", tmp_path.name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_at_any_moment_the_one_before_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    original = getattr(os, call)
    survived = 0
    for moment in range(100):
        folder, calls = made(tmp_path / str(moment), 3), 0

        def dying(*args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > moment:  # noqa: B023 (called within this turn of the loop)
                raise KeyboardInterrupt
            original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            try:
                made(folder, 6)
                survived += 1
            except KeyboardInterrupt:
                found = newest(folder)
                assert found and damage(found) == ""
                assert found.name == "checkpoint-3" or (folder / "checkpoint-6") == found
        clear(folder, all=False)
        if names(folder) == ["checkpoint-3"]:
            made(folder, 6)
        assert newest(folder) == folder / "checkpoint-6"
        if survived:
            assert moment > 1
            return
    raise AssertionError("it never survived")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "harm", "told"),
    [
        ("model.safetensors", flip, "model.safetensors has changed"),
        ("optimizer.pt", cut, "optimizer.pt has changed"),
        ("optimizer.pt", Path.unlink, "optimizer.pt is missing"),
        ("deep/state.json", flip, "deep/state.json has changed"),
        (MANIFEST, cut, f"{MANIFEST} cannot be read"),
        (MANIFEST, Path.unlink, f"{MANIFEST} is missing"),
    ],
)
def test_a_damaged_one_is_named_in_one_line_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, harm: Callable[[Path], None], told: str
) -> None:
    made(tmp_path, 3, 6)
    harm(tmp_path / "checkpoint-6" / file)
    assert newest(tmp_path) == tmp_path / "checkpoint-3"
    err = capsys.readouterr().err
    assert err == f"{tmp_path}/checkpoint-6 is damaged ({told}): going back to checkpoint-3\n"
    made(tmp_path, 6)  # it is gone, so the run can write it again
    assert newest(tmp_path) == tmp_path / "checkpoint-6"


def test_when_none_is_sound_training_starts_again_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, 3, 6)
    for path in tmp_path.glob("checkpoint-*"):
        flip(path / "model.safetensors")
    assert newest(tmp_path) is None
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": going back to ")[2] for line in lines] == ["checkpoint-3", "the first step"]
    assert names(tmp_path) == []


def test_nothing_is_said_where_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest(tmp_path / "nowhere") is None and newest(tmp_path) is None
    assert capsys.readouterr().err == ""


def test_clearing_takes_what_is_half_written_or_all(tmp_path: Path) -> None:
    made(tmp_path, 3)
    write(tmp_path, 6)
    (tmp_path / "run.json").touch()
    clear(tmp_path, all=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "run.json"]
    shutil.rmtree(tmp_path / "checkpoint-3" / "deep")  # as after a kill in the middle of deleting it
    clear(tmp_path, all=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
