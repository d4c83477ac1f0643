"""The trunk's pass by workers: the store of one process, byte for byte, whoever is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from domainkit import passes
from domainkit.model import trunk
from domainkit.model.base import Base, load_base
from domainkit.model.store import Store
from domainkit.passes import Pass
from domainkit.spec import Training
from domainkit.types import Sequence as Tokens
from domainkit.types import UserError
from domainkit.workers import Workers
from tests.model.test_twin import CONTEXT, grown
from tests.test_recipes import snapshot

TRAINING = Training(layers=2, bits=32, depths=(1,), activations="float32", context=CONTEXT)
SHARD = 64  # tokens
KILL = 3  # the block whose worker is killed, once

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not find_spec("datatrove"), reason="datatrove is missing: pip install 'domainkit[workers]'"),
]


@pytest.fixture
def base(tiny_base: Path) -> Base:
    return grown(load_base(tiny_base, bits=32, context=CONTEXT))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several batches."""
    monkeypatch.setattr(trunk, "SHARD", SHARD)
    monkeypatch.setattr(trunk, "BATCH", SHARD // 2)


def texts(base: Base, count: int = 40) -> list[Tokens]:
    """Of several lengths, with the glossary's tokens among them."""
    return [Tokens((0, *base.added, *range(3, 5 + i % 17), 100 + i), 9, str(i)) for i in range(count)]


def by_workers(base: Base, sequences: Sequence[Tokens], folder: Path, training: Training = TRAINING) -> Store:
    return passes.run(base, training, sequences, folder / "stores", Workers(2), folder / "work")


def by_one(base: Base, sequences: Sequence[Tokens], root: Path) -> dict[str, bytes]:
    """The files that one process writes."""
    trunk.run(base, 2, sequences, root, disk_gb=1, dtype="float32", depths=(1,))
    return snapshot(root)


@pytest.mark.usefixtures("at_once")
def test_workers_write_the_bytes_of_one_process(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = texts(base)
    expected = by_one(base, sequences, tmp_path / "alone")
    store = by_workers(base, sequences, tmp_path)
    assert snapshot(tmp_path / "stores") == expected and len(expected) > 5
    assert all(s.digest in store for s in sequences)
    assert not list((tmp_path / "work").iterdir())
    lost = sorted(store.folder.glob("*.safetensors"))[1]
    kept = lost.read_bytes()
    lost.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # a failing disk
    written = list[int]()
    call = Pass.__call__
    monkeypatch.setattr(Pass, "__call__", lambda self, number: (written.append(number), call(self, number)))
    by_workers(base, sequences, tmp_path)
    assert written == [0] and snapshot(tmp_path / "stores") == expected
    by_workers(base, sequences, tmp_path)
    assert written == [0]  # nothing was missing


@pytest.mark.usefixtures("at_once")
def test_a_shard_that_was_written_but_not_marked_is_not_computed_again(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Pass, number: int) -> None:
        call(self, number)
        raise KeyboardInterrupt  # before the mark

    call = Pass.__call__
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pass, "__call__", killed)
        by_workers(base, texts(base), tmp_path)
    (store,) = (tmp_path / "stores").iterdir()
    before = {path: path.stat().st_mtime_ns for path in store.glob("*.safetensors")}
    assert len(before) == 1
    by_workers(base, texts(base), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.usefixtures("at_once")
def test_a_machine_of_another_kind_is_refused(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its activations would be others: of a processor that computes in bfloat16, say."""
    call = Pass.__call__
    monkeypatch.setattr(Pass, "__call__", lambda self, number: call(
        replace(self, twin=replace(self.twin, attention="eager")), number))  # fmt: skip
    with pytest.raises(UserError, match=r"no activations of .* in 32 bits, .*machines of one kind"):
        by_workers(base, texts(base), tmp_path)


class Killed(Pass):
    def __call__(self, number: int) -> None:
        if number == KILL:
            try:
                (self.root / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        super().__call__(number)


@pytest.mark.slow
def test_a_killed_workers_blocks_are_done_again(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes; one is killed, and the pass goes on without being asked."""
    expected = by_one(base, texts(base), tmp_path / "alone")
    monkeypatch.setattr(passes, "Pass", Killed)
    by_workers(base, texts(base), tmp_path)
    (tmp_path / "stores" / "killed").unlink()
    assert snapshot(tmp_path / "stores") == expected


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed")
def test_ray_writes_the_bytes_of_one_process(base: Base, tmp_path: Path) -> None:
    expected = by_one(base, texts(base), tmp_path / "alone")
    passes.run(base, TRAINING, texts(base), tmp_path / "stores", Workers(2, "ray"), tmp_path / "work")
    assert snapshot(tmp_path / "stores") == expected
