"""A part whose run is a stub, as worker processes can unpickle it: it finds the first letter, and may be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainkit.parts import Part
from domainkit.types import Example, Span

KILL = "KILL"  # a document with this text kills the process that reads it, once


@dataclass(frozen=True)
class Stub:
    """Stands in for a run."""

    folder: Path  # where it leaves a trace of what it has read

    def annotate(self, examples: Sequence[Example], *, summary: str = "") -> list[Example]:
        if any(example.text == KILL for example in examples):
            try:
                (self.folder.parent / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder.parent / "read").open("a") as trace:
            trace.write("".join(f"{example.id}\n" for example in examples))
        return [replace(e, spans=(Span(0, 1, "Chemical", f"D{len(e.text)}"),), relations=()) for e in examples]


class Stubbed(Part):
    def reader(self) -> Any:
        return Stub(self.folder)
