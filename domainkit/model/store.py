"""Trunk activations on disk: memory-mapped shards under a manifest, one entry per token sequence.

    <root>/<key>/manifest.json         what the activations depend on, their width and dtype
    <root>/<key>/<shard>.safetensors   (tokens, width), the sequences of a shard one after another; its metadata tell
                                       which sequence has how many tokens, whose store it is, and the SHA-256 of it all

The key is the SHA-256 of the manifest's `of` (base, bits, attention, depth …), so another base never meets these
files; a sequence is found by the digest of its token ids, so a changed document costs exactly its own sequences.

Any number of processes may read and write one store at once, without a lock: a shard is one file that appears by being
renamed, whole; whoever opens a store maps its shards at once, and a mapped file can be deleted without its reader
noticing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from domainkit.files import sweep, write_atomic, write_text
from domainkit.progress import say
from domainkit.types import UserError

VALUES, TOLD = "activations", "shard"  # names of a shard's tensor and of its metadata
STALE = 3600.0  # seconds after which a shard that is still being written is taken for a killed process's


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
    why: str  # how the dtype was chosen
    places: dict[str, Place] = field(default_factory=dict)
    _maps: dict[str, Any] = field(default_factory=dict, repr=False)  # shard → open file

    @staticmethod
    def key(of: Mapping[str, object]) -> str:
        """Folder name for the activations of what `of` describes."""
        return sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def open(cls, root: Path, of: Mapping[str, object]) -> Store | None:
        """The store of `of` below `root`, or None when there is none yet. Half a shard is named and deleted.

        Raises UserError for activations of something else, naming what differs, and for a damaged manifest.
        """
        folder = root / cls.key(of)
        path = folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            store = cls(folder, int(manifest["width"]), str(manifest["dtype"]), str(manifest["why"]))
            _check(manifest["of"], of, folder)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"damaged: {error!r}", where=path, instead=f"delete {folder}") from None
        sweep(folder, older=STALE)
        store.refresh()
        return store

    @classmethod
    def create(cls, root: Path, of: Mapping[str, object], *, width: int, dtype: str, why: str) -> Store:
        """A new empty store, or the one that another process has just created; `why` says how the dtype was chosen."""
        folder = root / cls.key(of)
        manifest = {"of": dict(of), "width": width, "dtype": dtype, "why": why}
        if not (folder / "manifest.json").exists():
            write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
        store = cls.open(root, of)
        assert store
        return store

    def refresh(self) -> None:
        """Map the shards that other processes have written since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.stem not in self._maps:
                with suppress(FileNotFoundError):  # another process has just deleted it to make room
                    self._admit(path)

    def __contains__(self, digest: str) -> bool:
        return digest in self.places

    def bytes_for(self, tokens: int) -> int:
        return tokens * self.width * np.dtype(self.dtype).itemsize

    def get(self, digest: str) -> np.ndarray:
        """Activations of one sequence, a copy: (tokens, width). KeyError when absent."""
        place = self.places[digest]
        return self._maps[place.shard].get_slice(VALUES)[place.start : place.start + place.length]

    def files(self, digests: Iterable[str]) -> set[Path]:
        """The shards that hold those of the sequences that are here."""
        return {self._path(self.places[digest].shard) for digest in digests if digest in self.places}

    def put(self, entries: Sequence[tuple[str, np.ndarray]]) -> None:
        """Write one shard, whole or not at all. Raises UserError when the disk is full or read-only."""
        shard = sha256("".join(digest for digest, _ in entries).encode()).hexdigest()[:16]
        index = {digest: len(values) for digest, values in entries}
        exact = entries[0][1] if len(entries) == 1 else np.concatenate([values for _, values in entries])
        with np.errstate(over="ignore"):
            block = exact.astype(self.dtype, copy=False)
        if not np.isfinite(block).all():
            block = exact  # beyond float16's 65,504, which the sample that chose the dtype had not shown
        block = np.ascontiguousarray(block)
        told = {"of": self.folder.name, "index": index}
        told["sha256"] = _sha256(block, told)
        raw = safetensors.numpy.save({VALUES: block}, {TOLD: json.dumps(told)})  # one: it puts several in any order
        mapped: list[Any] = []

        def write(draft: Path) -> None:
            draft.write_bytes(raw)
            mapped.append(safe_open(draft, "numpy"))  # now: under its own name another process may delete it at once

        write_atomic(self._path(shard), write)
        self._take(shard, mapped[0], index)

    def verify(self, digests: Iterable[str]) -> None:
        """Read the shards that hold these sequences; those that are not as they were written are named and deleted."""
        for path in sorted(self.files(digests)):
            file = self._maps[path.stem]
            told = json.loads(file.metadata()[TOLD])
            if _sha256(file.get_tensor(VALUES), told) != told["sha256"]:
                self._drop(path, "changed since it was written")

    def _path(self, shard: str) -> Path:
        return self.folder / f"{shard}.safetensors"

    def _admit(self, path: Path) -> None:
        """Map a shard and note which sequences it holds."""
        try:
            file: Any = safe_open(path, "numpy")
            told, (tokens, width) = json.loads(file.metadata()[TOLD]), file.get_slice(VALUES).get_shape()
            index = told["index"]
            sound = width == self.width and tokens == sum(index.values())
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # the file's length is part of its format
            sound = False
        if not sound:
            self._drop(path, "half a shard, or none")
            return
        if told["of"] != self.folder.name:
            raise UserError(f"activations of store {told['of']}, in store {self.folder.name}", where=path,
                            instead=f"delete {path.name}")  # fmt: skip
        self._take(path.stem, file, index)

    def _take(self, shard: str, file: Any, index: Mapping[str, int]) -> None:
        self._maps[shard] = file
        start = 0
        for digest, length in index.items():
            self.places[digest] = Place(shard, start, length)
            start += length

    def _drop(self, path: Path, fault: str) -> None:
        say(f"{path}: {fault}; its activations are computed anew")
        self._maps.pop(path.stem, None)
        self.places = {digest: place for digest, place in self.places.items() if place.shard != path.stem}
        path.unlink(missing_ok=True)


def make_room(root: Path, needed: int, budget: int, keep: Iterable[Path]) -> None:
    """Delete the oldest shards below `root` until `needed` more bytes fit into `budget`; never touch `keep`.

    Processes that have opened a store keep reading what is deleted. Raises UserError when the shards to keep and the
    new ones exceed the budget, or the disk has less room.
    """
    kept = set(keep)
    shards = sorted(_sized(root))
    used = sum(size for _, size, _ in shards)
    for _, size, path in shards:
        if used + needed <= budget:
            break
        if path not in kept:
            used -= size
            path.unlink(missing_ok=True)
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


def _sized(root: Path) -> Iterator[tuple[float, int, Path]]:
    """Every shard below `root`: when it was written, its bytes, its path."""
    for path in root.glob("*/*.safetensors"):
        with suppress(FileNotFoundError):  # another process is making room as well
            stat = path.stat()
            yield stat.st_mtime, stat.st_size, path


def _sha256(block: np.ndarray, told: Mapping[str, Any]) -> str:
    """Of a shard's values and of what they are said to be."""
    total = sha256(json.dumps([told["of"], told["index"], str(block.dtype)]).encode())
    total.update(block.data)
    return total.hexdigest()


def _check(found: Mapping[str, object], wanted: Mapping[str, object], folder: Path) -> None:
    """Raise UserError naming what differs when a folder holds the activations of something else than its name says."""
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if differing:
        details = "; ".join(f"{key} is {found.get(key)}, should be {wanted.get(key)}" for key in differing)
        raise UserError(
            f"the activations of something else, {Store.key(found)}, under this name: {details}",
            where=folder,
            instead=f"delete it, or give it back its name, {Store.key(found)}",
        )
