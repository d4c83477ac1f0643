"""The whole stories, top to bottom: adapt a base to a domain, evaluate a run, load one in a notebook."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from domainkit import exam, passes, ranks
from domainkit.assets import cache_dir
from domainkit.claim import WORK, alone, finish, is_finished, remember
from domainkit.engines import engine
from domainkit.evaluate import ask, glossary_tables, judge, report, settle, speed, training_curves
from domainkit.files import digest, write_text
from domainkit.fit import fit
from domainkit.fresh import fresh_top
from domainkit.joint import trained_tokens
from domainkit.kinds import Answer, Reader
from domainkit.model import bundle, trunk
from domainkit.model.base import load_base
from domainkit.model.passing import Passing
from domainkit.model.precision import as_trained
from domainkit.model.split import Trunk
from domainkit.model.store import Store
from domainkit.model.top import Top
from domainkit.planning import in_parts, plan, rows
from domainkit.prepare import Request, Setting, describe, prepare
from domainkit.progress import bar, say
from domainkit.report import Report, Table, write_index
from domainkit.spec import Domain, Training
from domainkit.types import Example, UserError
from domainkit.workers import ALONE, Workers

TIMED = 32  # documents that are read once more, without stored activations, to tell how fast that is

__all__ = ["Request", "Setting", "evaluate", "export", "finetune", "plan"]


def finetune(request: Request) -> Path:
    """Adapt a base to a domain and write the run folder with its reports. Returns the folder.

    Under torchrun the first process prepares and writes; the others wait, read what it has written, and train with it.
    Raises UserError for anything the user can mend; KeyboardInterrupt leaves a run that `resume` continues.
    """
    began = time.perf_counter()
    domain = Domain.load(request.domain, config=request.config, overrides=request.overrides)
    folder = request.out or Path("runs") / domain.name
    by = engine(domain.training).name
    _check(request.workers)
    ranks.join(deepspeed=by == "deepspeed", fsdp=by == "fsdp")
    finished = ranks.leads() and is_finished(folder, resume=request.resume, overwrite=request.overwrite)
    if ranks.gather(finished)[0]:
        return folder
    with alone(folder):
        _adapt(request, domain, folder, began)
    return folder


def _adapt(request: Request, domain: Domain, folder: Path, began: float) -> None:
    """`finetune` in a folder that is nobody else's meanwhile."""
    with ranks.in_turn():
        setting = prepare(request, domain)
        engine(domain.training).check_scaling(scaled=setting.base.model.dtype == torch.float16)
        if ranks.leads():
            setting = in_parts(setting, rows(request, setting, folder))
            remember(folder, describe(request, setting), resume=request.resume)
    setting = in_parts(setting, ranks.gather(setting.domain.training.micro_batch)[0])
    store = activations(setting, request.workers, folder / WORK)
    top = fresh_top(setting, request.seed)
    log = train(setting, top, store, folder / WORK, request)
    ranks.leave()
    if not ranks.leads():
        return
    reader = reading(setting, top, store)
    for name, prepared in setting.prepared.items():
        settle(name, reader, prepared)
    record = describe(request, setting)
    bundle.save(folder, top, setting.base, record, bundle.model_card(record, ()), linker=setting.linker)
    shutil.rmtree(folder / "reports", ignore_errors=True)  # an earlier run's are not this one's
    answers = answered(setting, reader, folder, request.workers, folder / WORK)
    summaries = publish(setting, reader, answers, folder, folder / "reports", log=log, began=began)
    write_text(folder / "README.md", bundle.model_card(record, summaries))
    finish(folder)


def evaluate(domain: str, *, run: Path | None = None, base: str | None = None, tasks: Sequence[str] = (),
             data: Sequence[str] = (), format: str = "", out: Path | None = None, limit: int | None = None,
             hub: bool = False, workers: Workers = ALONE) -> Path:  # fmt: skip
    """Score a finished run on held-out data, or on all of `data` (`format`: of its files, if their names do not say).

    Returns the folder of the reports. torchrun's processes share the trunk's pass, and the first one does the rest;
    workers share the pass and the reading, and this process scores.
    """
    began = time.perf_counter()
    _check(workers)
    ranks.join()
    loaded = Domain.load(domain)
    folder = run or Path("runs") / loaded.name
    record = bundle.read(folder)
    if record.domain != loaded.name:
        raise UserError(f"this run is for domain {record.domain}, not {loaded.name}", where=folder)
    loaded = _as_trained(loaded, record)
    request = Request(
        domain, base or str(record.base["name"]), tasks=tuple(tasks) or tuple(record.tasks), data=tuple(data),
        format=format, limit=limit, seed=record.seed, hub=hub,
    )  # fmt: skip
    with ranks.in_turn():
        setting = prepare(request, loaded, folder)
    target = out or folder / "reports"
    work = target / WORK
    with alone(work) if workers else nullcontext():
        store = activations(setting, workers, work)
        ranks.leave()
        if not ranks.leads():
            return target
        top = fresh_top(setting, record.seed)
        bundle.restore(folder, top)
        reader = reading(setting, top, store)
        publish(setting, reader, answered(setting, reader, folder, workers, work), folder, target, log=(), began=began)
        shutil.rmtree(work, ignore_errors=True)
    return target


def export(run: Path, target: Path, *, base: str | None = None, bits: int = 32, hub: bool = False) -> Path:
    """Merge a run's adapter and glossary rows into its base: a plain Hugging Face folder. Returns `target`."""
    record = bundle.read(run)
    loaded = load_base(base or str(record.base["name"]), bits=bits, context=record.training["context"], hub=hub)
    bundle.check_base(record, loaded)
    bundle.export(run, loaded, target)
    return target


def activations(setting: Setting, workers: Workers = ALONE, work: Path = Path()) -> Store:
    """Run the trunk over everything the tasks need and the store lacks; workers or torchrun's processes share it.

    work: the folder where workers find what is to be done.
    """
    training, root = setting.domain.training, cache_dir() / "activations"
    sequences = [s for p in setting.prepared.values() for s in p.sequences]
    share, below = (ranks.rank(), ranks.count()), Trunk(setting.base, training.layers, training.depths)
    store = trunk.ready(setting.base, training.layers, sequences, root, disk_gb=training.disk_gb,
                        dtype=training.activations, depths=training.depths, share=share)  # fmt: skip
    say(f"activations: {store.bytes_for(1):,} bytes per token, {store.dtype} ({store.why})")
    if workers:
        passes.run(store, setting.base, training, sequences, workers, work)
    else:
        missing = {s.digest: len(s.ids) for s in sequences if s.digest not in store}
        with bar("trunk", sum(missing.values()) // ranks.count()) as advance:
            trunk.complete(store, below, sequences, share=share, progress=advance)
    if not all(s.digest in store for s in sequences):
        raise UserError("the activations that other processes have written are not here", where=store.folder,
                        instead="DOMAINKIT_CACHE on a disk that all machines share")  # fmt: skip
    return store


def reading(setting: Setting, top: Top, store: Store | None) -> Reader:
    """What the tasks read documents with."""
    training, prepared = setting.domain.training, setting.prepared
    return Reader(
        top, setting.base,
        Passing(Trunk(setting.base, training.layers, training.depths), context=training.context, store=store),
        training.context, setting.kinds, {name: p.labels for name, p in prepared.items()},
        {name: p.adapter for name, p in prepared.items()}, setting.graph, setting.linker,
    )  # fmt: skip


def train(setting: Setting, top: Top, store: Store, work: Path, request: Request) -> Sequence[Mapping[str, Any]]:
    """Fit the top under a progress bar; returns the log of every step."""
    training = setting.domain.training
    total = sum(trained_tokens(setting.prepared, training).values())
    with bar("top", total) as advance:

        def tell(tokens: int, logs: Mapping[str, float]) -> None:
            advance(tokens, f"loss {logs['loss']:.3f}, norm {logs['grad_norm']:.2f}" if "loss" in logs else "")

        fitted = fit(
            top, setting.kinds, setting.prepared, store, training,
            folder=work, seed=request.seed, resume=request.resume, progress=tell,
        )  # fmt: skip
    return fitted.log


def answered(setting: Setting, reader: Reader, run: Path, workers: Workers, work: Path) -> dict[str, list[Answer]]:
    """What every task finds of all that it is tested on; by workers, which load the run, or with `reader`.

    work: the folder where workers find what is to be done.
    """
    say("evaluating on held-out data …")
    if workers:
        return exam.answers(setting.prepared, run, setting.base.path, cache_dir() / "activations", workers, work)
    return {
        name: [one for portion in prepared.portions() for one in ask(name, reader, portion)]
        for name, prepared in setting.prepared.items()
    }


def publish(setting: Setting, reader: Reader, answers: Mapping[str, Sequence[Answer]], run: Path, target: Path, *,
            log: Sequence[Mapping[str, Any]], began: float) -> list[str]:  # fmt: skip
    """Score every task's answers and write the reports. Returns their summaries."""
    record = bundle.read(run)
    seed = record.seed
    earlier = _reports_of(setting.domain, run, target)
    reports: dict[str, Report] = {}
    timed: dict[tuple[Example, ...], tuple[Table, ...]] = {}  # tasks that are tested on the same documents share it
    shared = glossary_tables(record.glossary)
    for name, prepared in setting.prepared.items():
        outcome = judge(name, reader, prepared, answers[name], seed=seed)
        texts = () if name in reader.of_kind("summary") else tuple(Example(e.text) for e in prepared.gold[:TIMED])
        if texts not in timed:
            timed[texts] = speed(reading(setting, reader.top, None), texts)
        reports[name] = report(
            replace(outcome, tables=(*outcome.tables, *timed[texts], *shared)),
            setting.domain,
            setting.domain.task(name),
            setting.base,
            prepared,
            data={k: v for k, v in setting.data.items() if k.startswith(f"{name}/")},
            adapter_sha256=digest(bundle.adapter_path(run, prepared.adapter)),
            seconds=time.perf_counter() - began,
            seed=seed,
            curves=training_curves(log, name) or (earlier[name].curves if name in earlier else ()),
        )
        reports[name].write(target)
    together = earlier | reports
    write_index([together[task.name] for task in setting.domain.tasks if task.name in together], target)
    return [r.summary for r in reports.values()]


def _check(workers: Workers) -> None:
    """Raises UserError for workers that cannot be had, before anything is done."""
    if workers and ranks.launched():
        raise UserError("torchrun's processes share the work already", where="--workers or --engine",
                        instead="either of the two")  # fmt: skip
    if workers:
        workers.check()


def _reports_of(domain: Domain, run: Path, target: Path) -> dict[str, Report]:
    """The reports that already stand in `target` and score this very run, by task."""
    found: dict[str, Report] = {}
    for task in domain.tasks:
        with suppress(UserError):  # none, or damaged: it is written anew
            there = Report.read(target / f"{task.name}.json")
            if there.adapter_sha256 == digest(bundle.adapter_path(run, task.adapter)):
                found[task.name] = there
    return found


def _as_trained(domain: Domain, record: bundle.Record) -> Domain:
    """The domain with the settings that the run was trained with, in a precision that this device has."""
    tasks = tuple(
        replace(t, settings=record.tasks[t.name]["settings"], adapter=record.tasks[t.name]["adapter"])
        for t in domain.tasks
        if t.name in record.tasks
    )
    training = Training(**record.training)
    return replace(domain, training=replace(training, precision=as_trained(training.precision)), tasks=tasks)
