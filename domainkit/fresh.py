"""A top that has learned nothing yet, with the heads that the tasks of a setting need."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from domainkit.model import bundle
from domainkit.model.derived import derive
from domainkit.model.top import BALANCE, Top, adapt
from domainkit.nets.balance import Balance
from domainkit.prepare import Setting, kept


def fresh_top(setting: Setting, seed: int) -> Top:
    """An untrained top with the heads that the tasks need, drawn from `seed`."""
    training = setting.domain.training
    torch.manual_seed(seed)
    heads = bundle.heads_of({name: _head(setting, name) for name in setting.kinds})
    learning = [name for name, prepared in setting.prepared.items() if prepared.train]
    if training.balance and len(learning) > 1:
        heads[BALANCE] = Balance(learning)
    return adapt(
        setting.base, heads, layers=training.layers, rank=training.rank, alpha=training.alpha, seed=seed,
        adapters=[prepared.adapter for prepared in setting.prepared.values()], steer=training.steer,
    )  # fmt: skip


def _head(setting: Setting, task: str) -> nn.Module | None:
    """The head of a task. What it solves from labelled texts stands in its buffers, and is solved once."""
    kind, base, prepared = setting.kinds[task], setting.base, setting.prepared[task]
    head = kind.head(base, replace(prepared, labelled=()))
    if head is None or not prepared.labelled:
        return head

    def solve() -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):  # solved now or before, what is drawn next is the same
            return dict(cast(nn.Module, kind.head(base, prepared)).named_buffers())

    of = [type(kind).__module__, vars(kind), prepared, base.origin, base.rows]
    for name, value in derive(kept(), "head", of, solve).items():
        owner, _, leaf = name.rpartition(".")
        setattr(head.get_submodule(owner), leaf, value)  # of another shape than without texts
    return head
