"""The whole stories, top to bottom: adapt a base to a domain, evaluate a run, load one in a notebook."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from heapq import nsmallest
from pathlib import Path
from typing import Any

import torch

from domainkit.assets import cache_dir
from domainkit.claim import WORK, is_finished, remember
from domainkit.data.read import read
from domainkit.estimate import Estimate, estimate
from domainkit.evaluate import judge, report, settle, training_curves, versions
from domainkit.files import write_text
from domainkit.fit import fit
from domainkit.kinds import Corpus, Kind, Prepared, load_kind
from domainkit.model import bundle, trunk
from domainkit.model.base import Base, load_base
from domainkit.model.split import check_split
from domainkit.model.store import Store
from domainkit.model.top import Top, adapt
from domainkit.progress import bar, say
from domainkit.report import Report, write_index
from domainkit.spec import Domain, Source, Task, Training
from domainkit.types import Example, UserError


@dataclass(frozen=True)
class Request:
    """What a user asks of `finetune`; the fields are the options of the command line."""

    domain: str
    base: str = "smollm2-135m"
    out: Path | None = None
    tasks: tuple[str, ...] = ()
    data: tuple[str, ...] = ()  # "PATH" for the first task or "TASK=PATH"
    limit: int | None = None  # documents of each source
    resume: bool = False
    seed: int = 0
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    hub: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Setting:
    """A request made concrete: the domain, the base, and every task with its data ready."""

    domain: Domain
    base: Base
    kinds: Mapping[str, Kind]
    prepared: Mapping[str, Prepared]
    data: Mapping[str, Any]  # source → path, SHA-256


def finetune(request: Request) -> Path:
    """Adapt a base to a domain and write the run folder with its reports. Returns the folder.

    Raises UserError for anything the user can mend; KeyboardInterrupt leaves a run that `resume` continues.
    """
    began = time.perf_counter()
    domain = Domain.load(request.domain, config=request.config, overrides=request.overrides)
    folder = request.out or Path("runs") / domain.name
    if is_finished(folder, resume=request.resume, overwrite=request.overwrite):
        return folder
    setting = prepare(request, domain)
    remember(folder, describe(request, setting), resume=request.resume)
    store = activations(setting)
    top = fresh_top(setting, request.seed)
    log = train(setting, top, store, folder / WORK, request)
    for name, prepared in setting.prepared.items():
        settle(setting.kinds[name], top, store, prepared, context=setting.domain.training.context)
    record = describe(request, setting)
    bundle.save(folder, top, setting.base, record, bundle.model_card(record, ()))
    shutil.rmtree(folder / "reports", ignore_errors=True)  # an earlier run's are not this one's
    summaries = publish(setting, top, store, folder, folder / "reports", log=log, began=began)
    write_text(folder / "README.md", bundle.model_card(record, summaries))
    shutil.rmtree(folder / WORK)
    return folder


def plan(request: Request) -> Estimate:
    """What `finetune` would do, without doing it: nothing is written."""
    domain = Domain.load(request.domain, config=request.config, overrides=request.overrides)
    setting = prepare(request, domain)
    return estimate(setting.base, setting.prepared, domain.training)


def evaluate(domain: str, *, run: Path | None = None, base: str | None = None, tasks: Sequence[str] = (),
             data: Sequence[str] = (), out: Path | None = None, limit: int | None = None,
             hub: bool = False) -> Path:  # fmt: skip
    """Score a finished run on held-out data, or on all of `data`. Returns the folder of the reports."""
    began = time.perf_counter()
    loaded = Domain.load(domain)
    folder = run or Path("runs") / loaded.name
    record = bundle.read(folder)
    if record.domain != loaded.name:
        raise UserError(f"this run is for domain {record.domain}, not {loaded.name}", where=folder)
    loaded = _as_trained(loaded, record)
    request = Request(
        domain, base or str(record.base["name"]), tasks=tuple(tasks) or tuple(record.tasks), data=tuple(data),
        limit=limit, seed=record.seed, hub=hub,
    )  # fmt: skip
    setting = prepare(request, loaded, record=record)
    store = activations(setting)
    top = fresh_top(setting, record.seed)
    bundle.restore(folder, top)
    target = out or folder / "reports"
    publish(setting, top, store, folder, target, log=(), began=began)
    return target


def prepare(request: Request, domain: Domain, record: bundle.Record | None = None) -> Setting:
    """Load the base, read and tokenize every task's data. With a record: test data only, the run's own labels."""
    tasks = [domain.task(name) for name in request.tasks] or list(domain.tasks)
    given = _given(request.data, tasks)
    kinds = {task.name: load_kind(task) for task in tasks}  # a wrong setting is found before the base is loaded
    base = load_base(request.base, bits=domain.training.bits, attention=domain.training.attention, hub=request.hub)
    if record:
        bundle.check_base(record, base)
    check_split(base, domain.training.layers)
    prepared: dict[str, Prepared] = {}
    data: dict[str, Any] = {}
    for task in tasks:
        sources = _sources(task, given.get(task.name), alone=record is not None)
        corpus = Corpus(
            domain.name,
            {s.name: _few(read(s.path, language=s.language, source=s.name), request.limit) for s in sources},
            {s.name: s.part for s in sources},
            domain.training.context,
            request.seed,
            held_out=not (record and task.name in given),
        )
        ready = replace(kinds[task.name].prepare(corpus, base), adapter=task.adapter)
        if record:
            ready = replace(ready, train=(), check=(), labelled=(), labels=tuple(record.tasks[task.name]["labels"]))
        prepared[task.name] = ready
        data |= {f"{task.name}/{s.name}": _provenance(s.path) for s in sources}
    return Setting(domain, base, kinds, prepared, data)


def activations(setting: Setting) -> Store:
    """Run the trunk over everything the tasks need and the store lacks."""
    training, root = setting.domain.training, cache_dir() / "activations"
    sequences = [s for p in setting.prepared.values() for s in p.sequences]
    store = trunk.open_store(setting.base, training.layers, sequences, root, dtype=training.activations)
    missing = {s.digest: len(s.ids) for s in sequences if s.digest not in store}
    with bar("trunk", sum(missing.values())) as advance:
        return trunk.run(
            setting.base, training.layers, sequences, root,
            disk_gb=training.disk_gb, dtype=training.activations, progress=advance,
        )  # fmt: skip


def fresh_top(setting: Setting, seed: int) -> Top:
    """An untrained top with the heads that the tasks need, drawn from `seed`."""
    training = setting.domain.training
    torch.manual_seed(seed)
    heads = bundle.heads_of(
        {name: kind.head(setting.base, setting.prepared[name]) for name, kind in setting.kinds.items()}
    )
    return adapt(
        setting.base, heads, layers=training.layers, rank=training.rank, alpha=training.alpha, seed=seed,
        adapters=[prepared.adapter for prepared in setting.prepared.values()],
    )  # fmt: skip


def train(setting: Setting, top: Top, store: Store, work: Path, request: Request) -> Sequence[Mapping[str, Any]]:
    """Fit the top under a progress bar; returns the log of every step."""
    training = setting.domain.training
    total = training.epochs * sum(len(s.ids) for p in setting.prepared.values() for s in p.train)
    with bar("top", total) as advance:

        def tell(tokens: int, logs: Mapping[str, float]) -> None:
            advance(tokens, f"loss {logs['loss']:.3f}, norm {logs['grad_norm']:.2f}" if "loss" in logs else "")

        fitted = fit(
            top, setting.kinds, setting.prepared, store, training,
            folder=work, seed=request.seed, resume=request.resume, progress=tell,
        )  # fmt: skip
    return fitted.log


def publish(setting: Setting, top: Top, store: Store, run: Path, target: Path, *,
            log: Sequence[Mapping[str, Any]], began: float) -> list[str]:  # fmt: skip
    """Score every task on its held-out data and write the reports. Returns their summaries."""
    say("evaluating on held-out data …")
    seed = bundle.read(run).seed
    earlier = _reports_of(setting.domain, run, target)
    reports: dict[str, Report] = {}
    for name, prepared in setting.prepared.items():
        outcome = judge(setting.kinds[name], top, store, prepared, context=setting.domain.training.context, seed=seed)
        reports[name] = report(
            outcome,
            setting.domain,
            setting.domain.task(name),
            setting.base,
            prepared,
            data={k: v for k, v in setting.data.items() if k.startswith(f"{name}/")},
            adapter_sha256=bundle.digest(bundle.adapter_path(run, prepared.adapter)),
            seconds=time.perf_counter() - began,
            seed=seed,
            curves=training_curves(log, name) or (earlier[name].curves if name in earlier else ()),
        )
        reports[name].write(target)
    together = earlier | reports
    write_index([together[task.name] for task in setting.domain.tasks if task.name in together], target)
    return [r.summary for r in reports.values()]


def _reports_of(domain: Domain, run: Path, target: Path) -> dict[str, Report]:
    """The reports that already stand in `target` and score this very run, by task."""
    found: dict[str, Report] = {}
    for task in domain.tasks:
        with suppress(UserError):  # none, or damaged: it is written anew
            there = Report.read(target / f"{task.name}.json")
            if there.adapter_sha256 == bundle.digest(bundle.adapter_path(run, task.adapter)):
                found[task.name] = there
    return found


def describe(request: Request, setting: Setting) -> bundle.Record:
    """The record of a run."""
    base, domain = setting.base, setting.domain
    tasks = {
        name: {
            "kind": domain.task(name).kind,
            "adapter": p.adapter,
            "labels": list(p.labels),
            "settings": dict(domain.task(name).settings),
        }
        for name, p in setting.prepared.items()
    }
    return bundle.Record(
        domain=domain.name,
        base={"name": base.name, "sha256": base.sha256, "bits": base.bits, "attention": base.attention},
        training=asdict(domain.training),
        tasks=tasks,
        seed=request.seed,
        files=dict(domain.hashes),
        data=dict(setting.data),
        versions=versions(),
        limit=request.limit,
    )


def _given(data: Sequence[str], tasks: Sequence[Task]) -> dict[str, Path]:
    """`--data PATH` (for the first task) and `--data TASK=PATH` as task → path."""
    given: dict[str, Path] = {}
    names = [task.name for task in tasks]
    for text in data:
        task, equals, path = text.partition("=")
        if equals and task in names:
            given[task] = Path(path).expanduser()
        elif equals and not Path(text).exists():
            raise UserError(f"unknown task {task!r}", where=f"--data {text}", instead=f"one of {names}")
        else:
            given[names[0]] = Path(text).expanduser()
    return given


def _sources(task: Task, given: Path | None, *, alone: bool) -> tuple[Source, ...]:
    """A task's sources; the user's own data stands in for its domain text, or (`alone`) for all of it."""
    if given is None:
        return task.sources
    general = () if alone else tuple(s for s in task.sources if s.part == "general")  # stays in the mixture
    return (Source(path=given.absolute(), part="domain", language="", name=given.name), *general)


def _few(examples: Iterable[Example], limit: int | None) -> Iterable[Example]:
    """All examples, or `limit` of them that only their text decides, so that every run picks the same."""
    if limit is None:
        return examples
    return nsmallest(limit, examples, key=lambda e: sha256(e.text.encode()).digest())


def _as_trained(domain: Domain, record: bundle.Record) -> Domain:
    """The domain with the settings that the run was trained with."""
    tasks = tuple(
        replace(t, settings=record.tasks[t.name]["settings"], adapter=record.tasks[t.name]["adapter"])
        for t in domain.tasks
        if t.name in record.tasks
    )
    return replace(domain, training=Training(**record.training), tasks=tasks)


def _provenance(path: Path) -> dict[str, str]:
    """Where data came from: path, format, and the SHA-256 of the file (or of the names and hashes below a folder)."""
    if path.is_file():
        return {"path": str(path), "sha256": bundle.digest(path), "format": path.name.partition(".")[2]}
    lines = [f"{p.relative_to(path)} {bundle.digest(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
    return {"path": str(path), "sha256": sha256("\n".join(lines).encode()).hexdigest(), "format": "folder"}
