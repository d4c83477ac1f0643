"""The activation store: atomic shards, exact lookup, budget, and any number of processes at once."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from domainkit.model.store import STALE, Store, make_room
from domainkit.types import UserError

OF = {"base": "abc", "bits": 4, "depth": 28}


def new(root: Path, dtype: str = "float32", **changes: Any) -> Store:
    return Store.create(root, OF | changes, width=4, dtype=dtype, why="test")


def reopened(root: Path) -> Store:
    store = Store.open(root, OF)
    assert store is not None
    return store


def rows(n: int, start: float = 0.0) -> np.ndarray:
    return (np.arange(n * 4, dtype=np.float32) + start).reshape(n, 4)


def shard(store: Store, digest: str = "a") -> Path:
    (path,) = store.files([digest])
    return path


def test_what_was_put_is_found_again_after_reopening(tmp_path: Path) -> None:
    new(tmp_path).put([("a", rows(3)), ("b", rows(2, 100))])
    store = reopened(tmp_path)
    assert "a" in store and "c" not in store
    np.testing.assert_array_equal(store.get("a"), rows(3))
    np.testing.assert_array_equal(store.get("b"), rows(2, 100))
    store.get("a")[0, 0] = 99
    np.testing.assert_array_equal(store.get("a"), rows(3))


def test_float16_halves_the_bytes(tmp_path: Path) -> None:
    store = new(tmp_path, "float16")
    store.put([("a", rows(3))])
    assert store.get("a").dtype == np.float16
    assert store.bytes_for(10) == 10 * 4 * 2


def test_another_base_bits_or_depth_never_meets_these_files(tmp_path: Path) -> None:
    new(tmp_path).put([("a", rows(3))])
    for change in ({"base": "abd"}, {"bits": 32}, {"depth": 27}):
        assert Store.open(tmp_path, OF | change) is None


def test_the_manifest_says_what_the_activations_depend_on(tmp_path: Path) -> None:
    folder = new(tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == {"of": OF, "width": 4, "dtype": "float32", "why": "test"}


def test_a_store_that_is_there_already_is_taken_as_it_is(tmp_path: Path) -> None:
    """Another process has created it since this one looked."""
    new(tmp_path, "float16").put([("a", rows(3))])
    store = new(tmp_path, "float32")
    assert store.dtype == "float16" and "a" in store


# Of something else


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"base": "abd"}, "base is abd, should be abc"),
        ({"bits": 32, "depth": 27}, "bits is 32, should be 4; depth is 27, should be 28"),
        ({"rows": "glossary"}, "rows is glossary, should be None"),
    ],
)
def test_a_folder_copied_under_a_wrong_name_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    other = new(tmp_path / "theirs", **change)
    other.put([("a", rows(3))])
    shutil.copytree(other.folder, tmp_path / Store.key(OF))
    with pytest.raises(UserError) as error:
        Store.open(tmp_path, OF)
    for part in (told, other.folder.name, Store.key(OF), "delete it"):
        assert part in str(error.value)
    assert (tmp_path / Store.key(OF)).exists()  # it may be somebody's


def test_a_shard_copied_from_another_store_is_refused(tmp_path: Path) -> None:
    mine, other = new(tmp_path), new(tmp_path, base="abd")
    other.put([("a", rows(3))])
    shutil.copy(shard(other), mine.folder)
    with pytest.raises(UserError, match=f"activations of store {other.folder.name}, in store {mine.folder.name}"):
        Store.open(tmp_path, OF)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"of": {}}', '{"of": 1, "width": 4, "dtype": "float32"}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    path = new(tmp_path).folder / "manifest.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: damaged.*instead: delete"):
        Store.open(tmp_path, OF)


# Damaged, half-written


@pytest.mark.parametrize("left", [0, 4, 30, 250, -1])
def test_half_a_shard_is_found_out_when_the_store_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    store = new(tmp_path)
    store.put([("a", rows(30))])
    store.put([("b", rows(5))])
    path = shard(store)
    path.write_bytes(path.read_bytes()[:left])
    again = reopened(tmp_path)
    assert "a" not in again and "b" in again and not path.exists()
    assert capsys.readouterr().err == f"{path}: half a shard, or none; its activations are computed anew\n"
    again.put([("a", rows(30))])
    np.testing.assert_array_equal(reopened(tmp_path).get("a"), rows(30))


def test_a_shard_of_another_width_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = new(tmp_path)
    safetensors.numpy.save_file({"activations": rows(3)[:, :2].copy()}, store.folder / "x.safetensors",
                                {"shard": json.dumps({"of": store.folder.name, "index": {"a": 3}})})  # fmt: skip
    assert "a" not in reopened(tmp_path)
    assert "half a shard, or none" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["values", "index"])
def test_changed_bytes_are_found_out_when_the_shard_is_to_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    store = new(tmp_path)
    store.put([("a", rows(30)), ("b", rows(2))])
    store.put([("c", rows(5))])
    path = shard(store)
    content = bytearray(path.read_bytes())
    at = content.rindex(b'\\"a\\"') + 2 if where == "index" else len(content) - 100
    content[at] ^= 4  # "a" becomes "e"
    path.write_bytes(content)
    again = reopened(tmp_path)
    again.verify(["c"])
    assert path.exists() and capsys.readouterr().err == ""  # what is not asked for is not read
    again.verify(["a", "b", "c", "e", "nowhere"])
    assert "a" not in again and "b" not in again and "c" in again and not path.exists()
    assert capsys.readouterr().err == f"{path}: changed since it was written; its activations are computed anew\n"


def test_sound_shards_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("float32", "float16"):
        store = new(tmp_path / dtype, dtype)
        store.put([("a", rows(30)), ("b", rows(2))])
        store.put([("c", rows(2) * np.float32(1e6))])  # beyond float16
        store.verify(["a", "b", "c"])
        again = Store.open(tmp_path / dtype, OF)
        assert again
        again.verify(["a", "b", "c"])
        assert set(again.places) == {"a", "b", "c"}
    assert capsys.readouterr().err == ""


def test_a_kill_while_writing_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        store.put([("a", rows(3))])
    monkeypatch.undo()
    assert not reopened(tmp_path).places
    assert sorted(p.name for p in store.folder.iterdir()) == ["manifest.json"]


def test_what_a_killed_process_left_is_swept_but_not_what_is_being_written(tmp_path: Path) -> None:
    store = new(tmp_path)
    now, then = (store.folder / f".{name}.safetensors.123.new" for name in ("now", "then"))
    for path in (now, then):
        path.touch()
    os.utime(then, (time.time() - STALE - 1,) * 2)
    reopened(tmp_path)
    assert now.exists() and not then.exists()


@pytest.mark.parametrize("call", ["fsync", "replace", "write_bytes"])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whatever comes upon it first: writing, forcing to disk, renaming."""
    store = new(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner: Any = Path if call == "write_bytes" else os
    monkeypatch.setattr(owner, call, full)
    with pytest.raises(UserError, match="disk is full"):
        store.put([("a", rows(3))])
    monkeypatch.undo()
    assert reopened(tmp_path).places == {} == store.places
    assert [p.name for p in store.folder.iterdir()] == ["manifest.json"]


# Room


def aged(store: Store, **ages: int) -> int:
    """Put a shard for each name, so many seconds old; returns the bytes of one."""
    for name, age in ages.items():
        store.put([(name, rows(8))])
        os.utime(shard(store, name), (1e9 - age, 1e9 - age))
    return shard(store, name).stat().st_size


def test_room_is_made_by_deleting_the_oldest_shards_but_never_the_wanted_ones(tmp_path: Path) -> None:
    store = new(tmp_path)
    size = aged(store, a=3, b=2, c=1)
    make_room(tmp_path, needed=size, budget=3 * size, keep=[shard(store, "a")])
    assert sorted(reopened(tmp_path).places) == ["a", "c"]  # b is the oldest one nobody wants


def test_who_has_opened_a_store_keeps_reading_what_another_deletes(tmp_path: Path) -> None:
    size = aged(new(tmp_path), a=3, b=2, c=1)
    reading = reopened(tmp_path)  # has not read a byte of any shard yet
    make_room(tmp_path, needed=size, budget=size, keep=[])
    assert not list(tmp_path.rglob("*.safetensors")) and not reopened(tmp_path).places
    reading.verify("abc")
    for name in "abc":
        np.testing.assert_array_equal(reading.get(name), rows(8))


def test_a_budget_too_small_is_refused_with_both_figures(tmp_path: Path) -> None:
    new(tmp_path)
    with pytest.raises(UserError, match=r"need 5\.00 GB, the budget is 1\.00 GB"):
        make_room(tmp_path, needed=5_000_000_000, budget=1_000_000_000, keep=[])


def test_a_disk_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk has"):
        make_room(tmp_path, needed=10**16, budget=10**17, keep=[])


# Several processes

ROUNDS = 60


def values(number: int) -> list[tuple[str, np.ndarray]]:
    return [(f"{number}-{i}", rows(50, number + i / 8)) for i in range(3)]


def sound(store: Store) -> set[str]:
    """What is there of them; it is what was written."""
    found = set()
    for name, expected in (one for number in range(ROUNDS) for one in values(number)):
        if name in store:
            np.testing.assert_array_equal(store.get(name), expected)
            found.add(name)
    return found


def write(root: Path, seed: int, told: Path) -> None:
    """All shards in an order of its own; what is said goes to a file."""
    with told.open("w") as file:
        os.dup2(file.fileno(), 2)
        store = new(root)
        for number in random.Random(seed).sample(range(ROUNDS), ROUNDS):
            store.put(values(number))


def read(root: Path, told: Path) -> None:
    """Whatever is there, until all is; half a shard would be named."""
    with told.open("w") as file:
        os.dup2(file.fileno(), 2)
        found: set[str] = set()
        while len(found) < 3 * ROUNDS:
            store = reopened(root)
            store.verify(store.places)
            found |= sound(store)


def make_room_often(root: Path, told: Path) -> None:
    """Delete the oldest shards again and again while others write and read them."""
    with told.open("w") as file:
        os.dup2(file.fileno(), 2)
        for _ in range(200):
            make_room(root, needed=0, budget=20_000, keep=[])
            time.sleep(0.005)


def together(*works: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    """Each in a process of its own; all must end well and say nothing."""
    fork = get_context("fork")
    processes = [(fork.Process(target=work, args=args), args[-1]) for work, args in works]
    for process, _ in processes:
        process.start()
    for process, told in processes:
        process.join(120)
        assert process.exitcode == 0 and told.read_text() == "", told.read_text()


def test_processes_that_write_and_read_one_store_at_once(tmp_path: Path) -> None:
    new(tmp_path)
    together(*((write, (tmp_path, seed, tmp_path / f"told {seed}")) for seed in range(3)),
             (read, (tmp_path, tmp_path / "told")))  # fmt: skip
    store = reopened(tmp_path)
    store.verify(store.places)
    assert len(store.places) == 3 * ROUNDS
    assert len(list(store.folder.iterdir())) == ROUNDS + 1  # no drafts are left


def test_processes_that_make_room_while_others_write(tmp_path: Path) -> None:
    new(tmp_path)
    together(*((write, (tmp_path, seed, tmp_path / f"told {seed}")) for seed in range(2)),
             *((make_room_often, (tmp_path, tmp_path / f"room {seed}")) for seed in range(2)))  # fmt: skip
    store = reopened(tmp_path)
    store.verify(store.places)
    sound(store)
