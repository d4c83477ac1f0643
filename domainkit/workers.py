"""Who does a map over numbered shards: worker processes, a Slurm job, a Ray cluster. One flag, the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from domainkit.progress import bar
from domainkit.types import UserError

ENGINES = ("datatrove", "ray")


@dataclass(frozen=True)
class Workers:
    """`--workers` and `--engine`; false where this process does all by itself."""

    count: int = 1
    engine: str = ""  # one of ENGINES, or the JSON file of a Slurm job's options; "": datatrove, if there are several

    def __bool__(self) -> bool:
        return bool(self.engine) or self.count > 1

    def check(self) -> dict[str, Any] | None:
        """The options of a Slurm job, if that is the engine. Raises UserError for one that is not there."""
        needed = ["datatrove", "ray"] if self.engine == "ray" else ["datatrove"]
        missing = [name for name in needed if not find_spec(name)]
        if missing:
            raise UserError(f"{missing[0]} is not installed", where="--engine or --workers",
                            instead="pip install 'domainkit[workers]', or one process without either")  # fmt: skip
        if self.engine in ("", *ENGINES):
            return None
        with suppress(OSError, ValueError):
            options = json.loads(Path(self.engine).read_text(encoding="utf-8"))
            if isinstance(options, dict):
                return options
        raise UserError(f"no engine {self.engine!r}", where="--engine",
                        instead=f"one of {list(ENGINES)}, or the JSON file of a Slurm job's options")  # fmt: skip

    def map(self, task: Callable[[int], object], count: int, folder: Path, *, title: str) -> None:
        """`task` (see `shards.Task`) for each of `count` shards that has no mark in `folder` yet, under a bar.

        Raises UserError when the engine is not there, or cannot get the shards done.
        """
        options = self.check()
        from domainkit.shards import Shards

        shards = Shards(task, count, folder)
        left = len(shards.get_incomplete_ranks())
        if not left:
            return
        with bar(title, left, "shards") as advance:
            if self.engine == "ray":
                shards.on_ray(self.count, advance)
            elif options is not None:
                shards.on_slurm(options, advance)
            else:
                shards.run(self.count, advance)


ALONE = Workers()
