"""Whose folder it is: nothing is overwritten unasked, and a run only goes on as what it was started as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from domainkit.files import write_text
from domainkit.fill import SHOWN
from domainkit.model.bundle import RECORD, Record
from domainkit.progress import say
from domainkit.types import UserError

WORK = ".work"  # checkpoints and settings of an unfinished run, inside the run folder


def is_done(folder: Path) -> bool:
    """Whether a finished run lies there, and nobody is at work on another."""
    return (folder / RECORD).exists() and not (folder / WORK).exists()


def is_finished(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """True when `resume` finds the run already finished; raises UserError rather than overwrite anything."""
    finished, begun = (folder / RECORD).exists(), (folder / WORK).exists()
    if is_done(folder) and resume:
        say(f"{folder} is finished already")
        return True
    if (finished or begun) and not (resume or overwrite):
        raise UserError(
            f"holds {'an unfinished' if begun else 'a finished'} run",
            where=folder,
            instead="--resume to go on, --overwrite to start again, or another --out" if begun
            else "--overwrite to replace it, or another --out",
        )  # fmt: skip
    write_text(folder / ".writable", "")  # a read-only folder is found out now, not after the training
    (folder / ".writable").unlink()
    with suppress(OSError):
        folder.rmdir()  # when it is new: a refused request leaves nothing behind
    return False


def remember(folder: Path, record: Record, *, resume: bool) -> None:
    """Keep what the run was started with; on resume refuse anything else, naming what differs."""
    path = folder / WORK / "run.json"
    now = json.loads(json.dumps(asdict(record)))
    if resume and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        old, new = dict(_leaves(before)), dict(_leaves(now))
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            details = "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed[:SHOWN])
            details += f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise UserError(f"the run was started differently: {details}", where=folder,
                            instead="the same options, or --overwrite to start again")  # fmt: skip
    else:
        shutil.rmtree(folder / WORK, ignore_errors=True)  # not before: a fault in the data must not cost a run
        write_text(path, json.dumps(now, indent=1, ensure_ascii=False))


def _leaves(value: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Everything inside nested tables, with the way to it: "training.rank", 16."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{at}.{key}" if at else str(key))
    else:
        yield at, value
