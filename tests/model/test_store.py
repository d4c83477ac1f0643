"""The activation store: atomic shards, exact lookup, budget."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from domainkit.model.store import Store, make_room
from domainkit.types import UserError

OF = {"base": "abc", "bits": 4, "depth": 28}


def new(root: Path, dtype: str = "float32") -> Store:
    return Store.create(root, OF, width=4, dtype=dtype, why="test")


def rows(n: int, start: float = 0.0) -> np.ndarray:
    return (np.arange(n * 4, dtype=np.float32) + start).reshape(n, 4)


def test_what_was_put_is_found_again_after_reopening(tmp_path: Path) -> None:
    new(tmp_path).put([("a", rows(3)), ("b", rows(2, 100))])
    store = Store.open(tmp_path, OF)
    assert store is not None and "a" in store and "c" not in store
    np.testing.assert_array_equal(store.get("a"), rows(3))
    np.testing.assert_array_equal(store.get("b"), rows(2, 100))
    assert isinstance(store.get("b").base, np.memmap) or isinstance(store.get("b"), np.memmap)
    with pytest.raises(ValueError):
        store.get("a")[0, 0] = 1  # read-only


def test_float16_halves_the_bytes(tmp_path: Path) -> None:
    store = new(tmp_path, "float16")
    store.put([("a", rows(3))])
    assert store.get("a").dtype == np.float16
    assert store.bytes_for(10) == 10 * 4 * 2


def test_another_base_bits_or_depth_never_meets_these_files(tmp_path: Path) -> None:
    new(tmp_path).put([("a", rows(3))])
    for change in ({"base": "abd"}, {"bits": 32}, {"depth": 27}):
        assert Store.open(tmp_path, OF | change) is None


def test_a_shard_without_its_index_does_not_exist_and_is_swept(tmp_path: Path) -> None:
    store = new(tmp_path)
    store.put([("a", rows(3))])
    (shard,) = store.folder.glob("*.npy")
    shard.with_suffix(".json").unlink()  # as after a kill between the two renames
    reopened = Store.open(tmp_path, OF)
    assert reopened is not None and "a" not in reopened
    assert not shard.exists()


def test_a_kill_while_writing_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        store.put([("a", rows(3))])
    monkeypatch.undo()
    reopened = Store.open(tmp_path, OF)
    assert reopened is not None and not reopened.places
    assert sorted(p.name for p in store.folder.iterdir()) == ["manifest.json"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        store.put([("a", rows(3))])
    monkeypatch.undo()
    assert Store.open(tmp_path, OF).places == {}  # type: ignore[union-attr]


def test_the_manifest_says_what_the_activations_depend_on(tmp_path: Path) -> None:
    folder = new(tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == {"of": OF, "width": 4, "dtype": "float32", "why": "test"}


def test_room_is_made_by_deleting_the_oldest_shards_but_never_the_wanted_ones(tmp_path: Path) -> None:
    store = new(tmp_path)
    for name, age in (("a", 3), ("b", 2), ("c", 1)):
        store.put([(name, rows(8))])
        path = store.folder / f"{store.places[name].shard}.npy"
        os.utime(path, (1e9 - age, 1e9 - age))
    size = (store.folder / f"{store.places['a'].shard}.npy").stat().st_size
    kept = store.folder / f"{store.places['a'].shard}.npy"
    make_room(tmp_path, needed=size, budget=3 * size, keep=[kept])
    left = Store.open(tmp_path, OF)
    assert left is not None and sorted(left.places) == ["a", "c"]  # b is the oldest one nobody wants


def test_a_budget_too_small_is_refused_with_both_figures(tmp_path: Path) -> None:
    new(tmp_path)
    with pytest.raises(UserError, match=r"need 5\.00 GB, the budget is 1\.00 GB"):
        make_room(tmp_path, needed=5_000_000_000, budget=1_000_000_000, keep=[])


def test_a_disk_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk has"):
        make_room(tmp_path, needed=10**16, budget=10**17, keep=[])
