"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from domainkit.types import UserError


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary path beside `path`, force it to disk, rename it to `path`.

    Raises UserError when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        sync(draft)
        os.replace(draft, path)
    except OSError as error:
        _discard(draft)
        raise explain(error, path) from error
    except BaseException:
        _discard(draft)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for UTF-8 text."""
    write_atomic(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Force a file's (or a folder's) content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
