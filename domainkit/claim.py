"""Whose folder it is: nothing is overwritten unasked, one process works on a run, and a run only goes on as what it
was started as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from domainkit import ranks
from domainkit.checkpoint import clear
from domainkit.files import explain, sweep, write_text
from domainkit.fill import SHOWN
from domainkit.model.bundle import RECORD, Record
from domainkit.progress import say
from domainkit.types import UserError

WORK = ".work"  # checkpoints and settings of an unfinished run, inside the run folder
STARTED = "run.json"  # in it: what the run was started with
DONE = ".done"  # what WORK is called while it is deleted
LOCK = ".lock"  # held by the process that works on the run; a killed one holds nothing


def is_finished(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """True when `resume` finds the run already finished; raises UserError rather than overwrite anything."""
    finished, begun = (folder / RECORD).exists(), (folder / WORK).exists()
    if finished and not begun and resume:
        finish(folder)  # the last process may have been killed while it did
        say(f"{folder} is finished already")
        return True
    if (finished or begun) and not (resume or overwrite):
        raise UserError(
            f"holds {'an unfinished' if begun else 'a finished'} run",
            where=folder,
            instead="--resume to go on, --overwrite to start again, or another --out" if begun
            else "--overwrite to replace it, or another --out",
        )  # fmt: skip
    return False


def remember(folder: Path, record: Record, *, resume: bool) -> None:
    """Keep what the run was started with; on resume refuse anything else, naming what differs."""
    path = folder / WORK / STARTED
    now = json.loads(json.dumps(asdict(record)))
    if resume and path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"damaged: {error}", where=path, instead="--overwrite to start again") from None
        old, new = dict(_leaves(before)), dict(_leaves(now))
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            details = "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed[:SHOWN])
            details += f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise UserError(f"the run was started differently: {details}", where=folder,
                            instead="the same options, or --overwrite to start again")  # fmt: skip
    else:
        clear(folder / WORK, all=True)  # not before: a fault in the data must not cost a run
        write_text(path, json.dumps(now, indent=1, ensure_ascii=False))


def began_with(folder: Path, key: str) -> object:
    """A training setting of the unfinished run in `folder`; None where there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / WORK / STARTED).read_text(encoding="utf-8"))["training"][key]
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within this block no other process works on the run in `folder`; a new folder that stays empty goes again.

    Of torchrun's processes the first one asks for all of them.
    Raises UserError when another process does, and when the folder cannot be written.
    """
    if not ranks.leads():
        yield
        return
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError("another process works on this run", where=folder, instead="another --out") from None
    except OSError as error:
        raise explain(error, folder) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            folder.rmdir()  # a refused request leaves nothing behind


def finish(folder: Path) -> None:
    """Delete what only an unfinished run needs. Killed on the way, the run is finished all the same."""
    shutil.rmtree(folder / DONE, ignore_errors=True)
    with suppress(FileNotFoundError):
        (folder / WORK).rename(folder / DONE)  # at once: half of it would be an unfinished run that cannot go on
    shutil.rmtree(folder / DONE, ignore_errors=True)
    (folder / LOCK).unlink(missing_ok=True)
    sweep(folder)


def _leaves(value: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Everything inside nested tables, with the way to it: "training.rank", 16."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{at}.{key}" if at else str(key))
    else:
        yield at, value
