"""Writing files so that nobody ever sees half of one, and telling whether one is still what was written."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path

from domainkit.types import UserError

DRAFT = re.compile(r"\..+\.\d+\.new")  # name of a file that is being written, or that a killed process left


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary path beside `path`, force it to disk, rename it to `path`.

    Raises UserError when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        sync(draft)
        move(draft, path)
    except OSError as error:
        _discard(draft)
        raise explain(error, path) from error
    except BaseException:
        _discard(draft)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for UTF-8 text."""
    write_atomic(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def move(draft: Path, path: Path) -> None:
    """Rename what is on disk already, and force the new name to disk too: a power cut does not take it back."""
    os.replace(draft, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's content, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, *, older: float = 0.0) -> None:
    """Delete what killed processes left half-written in `folder`. older: seconds since it was last written to, where
    other processes may be writing now."""
    for path in folder.glob(".*.new"):
        with suppress(OSError):  # another process was faster, or it cannot be deleted
            if DRAFT.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older:
                path.unlink()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def explain(error: Exception, path: Path) -> UserError:
    """The UserError that says what went wrong while writing at `path` and what to do.

    error: an OSError, or safetensors' own error, which carries its number in the text.
    """
    told = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if number == errno.ENOSPC:
        return UserError("the disk is full", where=path, instead="free some room, then run it again")
    return UserError(
        f"cannot write: {(os.strerror(number) if number else str(error)).lower()}",
        where=path,
        instead="a folder you may write to",
    )


def _discard(path: Path) -> None:
    with suppress(OSError):  # the first error is the one to report
        path.unlink(missing_ok=True)
