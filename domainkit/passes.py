"""The trunk's pass by workers: they write the shards of the store, in the bytes of one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from domainkit.files import write_text
from domainkit.model import trunk
from domainkit.model.base import Base
from domainkit.model.split import Trunk
from domainkit.model.store import Store
from domainkit.model.twin import Twin
from domainkit.spec import Training
from domainkit.types import Sequence as Tokens
from domainkit.workers import Workers


@dataclass(frozen=True)
class Pass:
    """Token sequences in blocks, a file each; called with a number, it writes the activations of that block."""

    folder: Path
    twin: Twin
    layers: int
    depths: tuple[int, ...]
    dtype: str
    root: Path  # of all stores

    def __call__(self, number: int) -> None:
        passing, store = _opened(self)
        block = [
            [[Tokens(tuple(ids), 0, "") for ids in batch] for batch in shard]
            for shard in json.loads(self.path(number).read_text(encoding="utf-8"))
        ]
        trunk.fill(store, passing, trunk.lacking(store, block))  # it may be done, and only its mark be missing

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"


def run(store: Store, base: Base, training: Training, sequences: Sequence[Tokens], workers: Workers,
        work: Path) -> None:  # fmt: skip
    """`trunk.complete` by workers. What of it is done, the store knows; what is to be done lies below `work` meanwhile.

    Raises UserError when the disk is full, and when the workers cannot get it done.
    """
    passing = Trunk(base, training.layers, training.depths)
    lacking = trunk.lacking(store, trunk.plan(sequences, passing.device))
    blocks = list(trunk.blocks(passing, lacking))
    if not blocks:
        return
    wanted = [s.digest for shard in lacking for batch in shard for s in batch]
    name = sha256(" ".join([store.folder.name, *wanted]).encode()).hexdigest()[:16]
    folder = (work / f"trunk-{name}").absolute()  # what is left of an earlier pass marks nothing in this one
    shutil.rmtree(folder, ignore_errors=True)
    twin = Twin.of(base, training.precision, training.context, folder / "rows.safetensors")
    root = store.folder.parent.absolute()
    task = Pass(folder, twin, training.layers, tuple(training.depths), training.activations, root)
    for number, block in enumerate(blocks):
        write_text(task.path(number), json.dumps([[[s.ids for s in batch] for batch in shard] for shard in block]))
    workers.map(task, len(blocks), folder / "marks", title="trunk")
    shutil.rmtree(folder)
    store.refresh()


@lru_cache(maxsize=1)
def _opened(task: Pass) -> tuple[Trunk, Store]:
    """Once in each process."""
    base = task.twin.load()
    store = trunk.find_store(base, task.layers, task.root, dtype=task.dtype, depths=task.depths)
    return Trunk(base, task.layers, task.depths), store
