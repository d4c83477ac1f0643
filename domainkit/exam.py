"""Evaluation by workers: each answers for some of what a task is tested on; all answers are scored once, together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from domainkit.data.jsonl import line, parse
from domainkit.evaluate import ask
from domainkit.files import digest, write_text
from domainkit.kinds import Answer, Portion, Prepared, Reader
from domainkit.model import bundle, trunk
from domainkit.model.passing import Passing
from domainkit.model.split import Trunk
from domainkit.run import load
from domainkit.types import Sequence as Tokens
from domainkit.workers import Workers


@dataclass(frozen=True)
class Exam:
    """What tasks are tested on, in parts; called with a part's number, it writes the answers."""

    folder: Path
    run: Path
    base: Path  # where the run's base lies
    root: Path  # of all stores of activations
    tasks: tuple[str, ...]

    def __call__(self, number: int) -> None:
        asked = json.loads(self.asked(number).read_text(encoding="utf-8"))
        found = ask(asked["task"], _reader(self), _unpacked(asked))
        write_text(self.answered(number), json.dumps(found, ensure_ascii=False))

    def asked(self, number: int) -> Path:
        return self.folder / f"{number:05d}.asked.json"

    def answered(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"


def answers(prepared: Mapping[str, Prepared], run: Path, base: Path, root: Path, workers: Workers,
            work: Path) -> dict[str, list[Answer]]:  # fmt: skip
    """What the tasks of a finished run find of all that they are tested on: the same as in one process.

    root: of the stores that have the activations. What lies below `work` of the very same exam is gone on with.
    Raises UserError when the workers cannot get it done.
    """
    parts = [(name, _packed(name, portion)) for name, one in prepared.items() for portion in one.portions()]
    of = sha256(" ".join([digest(run / bundle.RECORD), *prepared]).encode())
    for _, packed in parts:
        of.update(packed.encode())
    folder = (work / f"exam-{of.hexdigest()[:16]}").absolute()
    exam = Exam(folder, run.absolute(), base.absolute(), root.absolute(), tuple(prepared))
    for number, (_, packed) in enumerate(parts):
        write_text(exam.asked(number), packed)
    workers.map(exam, len(parts), folder / "marks", title="evaluation")
    found: dict[str, list[Answer]] = {name: [] for name in prepared}
    for number, (name, _) in enumerate(parts):
        found[name] += json.loads(exam.answered(number).read_text(encoding="utf-8"))
    return found


@lru_cache(maxsize=1)
def _reader(exam: Exam) -> Reader:
    """What the tasks read with, loaded once in each process; activations come from the store."""
    run = load(exam.run, base=str(exam.base))
    training = run.record.training
    layers, depths = training["layers"], training["depths"]
    store = trunk.find_store(run.base, layers, exam.root, dtype=training["activations"], depths=depths)
    passing = Passing(Trunk(run.base, layers, depths), context=training["context"], store=store)
    return replace(run.reader, batched=passing, kinds={name: run.reader.kinds[name] for name in exam.tasks})


def _packed(task: str, portion: Portion) -> str:
    documents = [line(e) for e in portion.documents]
    sequences, plain = ([asdict(s) for s in side] for side in (portion.sequences, portion.plain))
    fields = {"task": task, "first": portion.first, "documents": documents, "sequences": sequences, "plain": plain}
    return json.dumps(fields, ensure_ascii=False)


def _unpacked(fields: Mapping[str, Any]) -> Portion:
    sequences, plain = (tuple(Tokens(**{key: _frozen(value) for key, value in s.items()}) for s in fields[side])
                        for side in ("sequences", "plain"))  # fmt: skip
    return Portion(fields["first"], tuple(map(parse, fields["documents"])), sequences, plain)


def _frozen(value: Any) -> Any:
    """Tuples, which JSON has made lists of."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
