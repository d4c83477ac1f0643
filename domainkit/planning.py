"""What a run will take, before it does: told to the user, and how many rows of a training step fit at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import torch

from domainkit.advice import at_once
from domainkit.claim import began_with
from domainkit.estimate import Data, Estimate, Estimator
from domainkit.evaluate import peak_rss_mb
from domainkit.fresh import fresh_top
from domainkit.model.ondisk import waits
from domainkit.model.outline import outline, outline_of, size
from domainkit.prepare import Request, Setting, prepare
from domainkit.progress import say
from domainkit.rehearse import Rehearsal
from domainkit.spec import Domain


def plan(request: Request, tokens: int | None = None) -> Estimate:
    """What `finetune` would do and take, without doing it: no weight is read, and no run written.

    tokens: of the text, as if it had so many; the base then needs no tokenizer.
    """
    domain = Domain.load(request.domain, config=request.config, overrides=request.overrides)
    training = domain.training
    base = outline(request.base, bits=training.bits, precision=training.precision, attention=training.attention,
                   context=training.context, hub=request.hub, spell=tokens is not None)  # fmt: skip
    before = psutil.Process().memory_info().rss
    setting = prepare(request, domain, outline=base)
    data = Data.of(setting.prepared, training, tokens)
    now, most = psutil.Process().memory_info().rss + data.unread, peak_rss_mb() * 2**20 + data.unread
    rehearsal = _rehearsal(setting, request.seed, data)
    if not training.micro_batch:
        training = replace(training, micro_batch=_fitting(rehearsal, size(setting.base, training.bits)))
        rehearsal = replace(rehearsal, training=training)
    return Estimator(setting.base, rehearsal.top, training, data, rehearsal.work(), (before, now, most)).estimate()


def _rehearsal(setting: Setting, seed: int, data: Data) -> Rehearsal:
    """A run on its outline, which the base of `setting` is."""
    unsolved = {name: replace(prepared, labelled=()) for name, prepared in setting.prepared.items()}
    with torch.device("meta"):
        top = fresh_top(replace(setting, prepared=unsolved), seed)
    training = setting.domain.training
    return Rehearsal(setting.base, top, setting.kinds, setting.prepared, training, data.longest, data.tokens)


def _fitting(rehearsal: Rehearsal, beside: int = 0) -> int:
    """How many of a step's rows are computed at once. beside: bytes that will be taken by then."""
    training = rehearsal.training
    if training.batch == 1:
        return 1
    row = replace(rehearsal, training=replace(training, micro_batch=1)).train().peak
    return at_once(row, training.batch, beside)


def rows(request: Request, setting: Setting, folder: Path) -> int:
    """How many of a step's rows a run computes at once: as set, or as it began, so that it ends with the same bits, or
    what fits now."""
    training = setting.domain.training
    if training.micro_batch or training.batch == 1:
        return training.micro_batch or 1
    began = began_with(folder, "micro_batch") if request.resume else None
    if isinstance(began, int):
        return began
    base = outline_of(setting.base)
    unread = [own for own, layer in zip(base.layers(), setting.base.layers(), strict=True) if waits(layer)]
    work = _rehearsal(replace(setting, base=base), request.seed, Data.of(setting.prepared, training))
    found = _fitting(work, size(base, training.bits, unread))
    if found < training.batch:
        say(f"batch: {found} rows of {training.batch} fit at once: a step is put together from micro-batches")
    return found


def in_parts(setting: Setting, rows: int) -> Setting:
    """With so many rows of a training step at once."""
    training = replace(setting.domain.training, micro_batch=rows)
    return replace(setting, domain=replace(setting.domain, training=training))
