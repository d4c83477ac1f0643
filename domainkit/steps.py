"""What is trained in which order: every optimizer step of a run, and the micro-batches that it is dealt out in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch.utils.data import Dataset

from domainkit.joint import companions, epochs_of
from domainkit.kinds import Kind, Prepared
from domainkit.model.batch import Row, batches, collate
from domainkit.model.store import Store
from domainkit.spec import Training
from domainkit.types import Sequence as Tokens


@dataclass(frozen=True)
class Step:
    """An optimizer step, or a micro-batch of one: the task that leads it (see `joint.companions`) and its rows."""

    task: str
    rows: tuple[Row, ...]


def plan_steps(tasks: Mapping[str, Prepared], training: Training, seed: int) -> list[Step]:
    """Every optimizer step of the run in its order: each epoch packs each task anew and deals the batches out.

    What a task with fewer epochs has is spread over the whole run, so that it learns at every learning rate of the
    schedule. The order is fixed before training starts, so resuming is skipping.
    """
    epochs: list[list[Step]] = [[] for _ in range(training.epochs)]
    for number, name in enumerate(companions(tasks)):
        own = epochs_of(tasks[name], training)
        for epoch in range(own):
            order = seed * 1_000_003 + epoch * 1009 + number
            made = batches(tasks[name].train, row_tokens=training.context,
                           batch_tokens=training.batch * training.context, seed=order)  # fmt: skip
            for i, rows in enumerate(made):
                when = (epoch * len(made) + i) * training.epochs // (own * len(made))
                epochs[when].append(Step(name, tuple(rows)))
    for epoch, dealt in enumerate(epochs):
        random.Random(seed * 1_000_003 + epoch).shuffle(dealt)
    return [step for dealt in epochs for step in dealt]


def deal(steps: Iterable[Step], each: int) -> list[Step]:
    """Every step as `each` micro-batches of as many rows; of a small step some are empty."""
    dealt = []
    for step in steps:
        cuts = [len(step.rows) * i // each for i in range(each + 1)]
        dealt += [replace(step, rows=step.rows[start:end]) for start, end in pairwise(cuts)]
    return dealt


class Steps(Dataset):
    """Micro-batches as what `Objective.forward` takes; `each` of them are one optimizer step."""

    def __init__(self, steps: Sequence[Step], kinds: Mapping[str, Kind], tasks: Mapping[str, Prepared], store: Store,
                 each: int) -> None:  # fmt: skip
        self.steps, self.kinds, self.store, self.each = steps, kinds, store, each
        self.along = companions(tasks)
        self.own = {task: {s.digest: s for s in tasks[task].train} for along in self.along.values() for task in along}

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, first = self.steps[index], index - index % self.each
        item: dict[str, Any] = {"task": step.task, "batches": {}, "terms": {}, "shares": {}}
        if not step.rows:
            return item
        whole = [(0, s) for one in self.steps[first : first + self.each] for row in one.rows for s in row]
        batch = collate(step.rows, self.store.get)
        for task in (step.task, *self.along[step.task]):
            placed, terms = self._known(task, batch.placed), self.kinds[task].terms
            if placed:
                count = max(terms(s for _, s in self._known(task, whole)), 1)
                item["batches"][task] = replace(batch, placed=placed)
                item["terms"][task], item["shares"][task] = count, terms(s for _, s in placed) / count
        return item

    def _known(self, task: str, placed: Iterable[tuple[int, Tokens]]) -> tuple[tuple[int, Tokens], ...]:
        """What of it a task learns from, as it knows it: one that leads takes all as it is."""
        own = self.own.get(task)
        return tuple(placed) if own is None else tuple((at, own[s.digest]) for at, s in placed if s.digest in own)
