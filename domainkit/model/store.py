"""Trunk activations on disk: memory-mapped shards under a manifest, one entry per token sequence.

    <root>/<key>/manifest.json      what the activations depend on, their width and dtype
    <root>/<key>/<shard>.npy        (tokens, width), the sequences of a shard one after another
    <root>/<key>/<shard>.json       which sequence starts where; written last: without it the shard does not exist

The key is the SHA-256 of the manifest's `of` (base, bits, attention, depth …), so another base never meets these
files; a sequence is found by the digest of its token ids, so a changed document costs exactly its own sequences.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from domainkit.files import write_atomic, write_text
from domainkit.types import UserError


@dataclass(frozen=True)
class Place:
    shard: str
    start: int  # tokens
    length: int  # tokens


@dataclass
class Store:
    """Activations of one trunk. `places` maps a sequence's digest to where its activations lie."""

    folder: Path
    width: int
    dtype: str  # "float16" | "float32"
    places: dict[str, Place] = field(default_factory=dict)
    _maps: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def key(of: Mapping[str, object]) -> str:
        """Folder name for the activations of what `of` describes."""
        return sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def open(cls, root: Path, of: Mapping[str, object]) -> Store | None:
        """The store of `of` below `root`, or None when there is none yet. Unfinished shards are swept away."""
        folder = root / cls.key(of)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except FileNotFoundError:
            return None
        store = cls(folder, int(manifest["width"]), str(manifest["dtype"]))
        for path in sorted(folder.glob("*.npy")):
            if not path.with_suffix(".json").exists():
                path.unlink()
        for path in sorted(folder.glob("*.json")):
            if path.name != "manifest.json":
                store._admit(path.stem, json.loads(path.read_text()))
        return store

    @classmethod
    def create(cls, root: Path, of: Mapping[str, object], *, width: int, dtype: str, why: str) -> Store:
        """A new empty store; `why` says how the dtype was chosen."""
        folder = root / cls.key(of)
        manifest = {"of": dict(of), "width": width, "dtype": dtype, "why": why}
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
        return cls(folder, width, dtype)

    def __contains__(self, digest: str) -> bool:
        return digest in self.places

    def bytes_for(self, tokens: int) -> int:
        return tokens * self.width * np.dtype(self.dtype).itemsize

    def get(self, digest: str) -> np.ndarray:
        """Activations of one sequence: (tokens, width), memory-mapped, read-only. KeyError when absent."""
        place = self.places[digest]
        if place.shard not in self._maps:
            self._maps[place.shard] = np.load(self.folder / f"{place.shard}.npy", mmap_mode="r", allow_pickle=False)
        return self._maps[place.shard][place.start : place.start + place.length]

    def put(self, entries: Sequence[tuple[str, np.ndarray]]) -> None:
        """Write one shard. It exists once its index is in place; a kill before that leaves nothing to trust.

        Raises UserError when the disk is full or read-only.
        """
        shard = sha256("".join(digest for digest, _ in entries).encode()).hexdigest()[:16]
        index = {digest: len(values) for digest, values in entries}
        exact = entries[0][1] if len(entries) == 1 else np.concatenate([values for _, values in entries])
        with np.errstate(over="ignore"):
            block = exact.astype(self.dtype, copy=False)
        if not np.isfinite(block).all():
            block = exact  # beyond float16's 65,504, which the sample that chose the dtype had not shown
        write_atomic(self.folder / f"{shard}.npy", lambda path: _save(path, block))
        write_text(self.folder / f"{shard}.json", json.dumps(index))
        self._admit(shard, index)

    def _admit(self, shard: str, index: Mapping[str, int]) -> None:
        start = 0
        for digest, length in index.items():
            self.places[digest] = Place(shard, start, length)
            start += length


def make_room(root: Path, needed: int, budget: int, keep: Iterable[Path]) -> None:
    """Delete the oldest shards below `root` until `needed` more bytes fit into `budget`; never touch `keep`.

    Raises UserError when the shards to keep and the new ones exceed the budget, or the disk has less room.
    """
    kept = set(keep)
    shards = sorted(root.glob("*/*.npy"), key=lambda path: path.stat().st_mtime)
    used = sum(path.stat().st_size for path in shards)
    for path in shards:
        if used + needed <= budget:
            break
        if path not in kept:
            used -= path.stat().st_size
            path.with_suffix(".json").unlink(missing_ok=True)  # index first: a shard without one is nothing
            path.unlink()
    if used + needed > budget:
        raise UserError(
            f"the activations need {(used + needed) / 1e9:.2f} GB, the budget is {budget / 1e9:.2f} GB",
            where=root,
            instead="a larger --set disk_gb=…, fewer documents with --limit, or a shorter --set context=…",
        )
    free = shutil.disk_usage(root if root.exists() else root.parent).free
    if needed > free:
        raise UserError(
            f"the activations need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left",
            where=root,
            instead="free some room or point DOMAINKIT_CACHE to another disk",
        )


def _save(path: Path, block: np.ndarray) -> None:
    with path.open("wb") as file:  # a file, not a name: np.save would append .npy to the temporary name
        np.save(file, block, allow_pickle=False)
