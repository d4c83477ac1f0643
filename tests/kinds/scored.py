"""What a task scores, all in one process."""

from __future__ import annotations

from typing import Any

from domainkit.kinds import Outcome, Prepared, Reader


def evaluate(kind: Any, reader: Reader, prepared: Prepared, seed: int) -> Outcome:
    answers = [one for portion in prepared.portions() for one in kind.answer(reader, portion)]
    return kind.score(reader, prepared, answers, seed)
