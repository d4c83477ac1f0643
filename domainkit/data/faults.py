"""Everything wrong with the input, collected first and raised once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from domainkit.types import UserError

SHOWN = 5  # faults spelled out in one message; the rest are counted
SHOWN_GOLD = 20  # of annotated documents: whoever mends a corpus wants a page of them


@dataclass
class Faults:
    """What is wrong, in order; `more` counts what does not fit in the message."""

    found: list[UserError] = field(default_factory=list)
    more: int = 0
    shown: int = SHOWN
    lines: int = 0  # lines read so far, for the formats that have lines
    passed: Counter[str] = field(default_factory=Counter)  # lawful content that `Example` has no place for

    def add(self, what: str, where: object, instead: str) -> None:
        if len(self.found) < SHOWN_GOLD:
            self.found.append(UserError(what, where=where, instead=instead))
        else:
            self.more += 1

    def take(self, other: Faults) -> None:
        """Add the faults of one file, each with the number of lines that were read."""
        lines = f" ({other.lines} {'line' if other.lines == 1 else 'lines'} read)" if other.lines else ""
        for fault in other.found:
            self.add(fault.what + lines, fault.where, fault.instead)
        self.more += other.more
        self.shown = max(self.shown, other.shown)
        self.passed += other.passed

    def stop(self, path: Path) -> None:
        """Raise what was found, if anything, as one UserError."""
        count = len(self.found) + self.more
        if count == 1:
            raise self.found[0]
        if count:
            lines = "".join(f"\n  {fault}" for fault in self.found[: self.shown])
            rest = f"\n  and {count - self.shown} more" if count > self.shown else ""
            raise UserError(f"{count} faults{lines}{rest}", where=path)
