"""A request made concrete: the base loaded and taught the glossary, every task's data read and tokenized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from heapq import nsmallest
from pathlib import Path
from typing import Any

from domainkit import ranks
from domainkit.assets import cache_dir
from domainkit.data.mix import split
from domainkit.data.read import read
from domainkit.files import digest
from domainkit.glossary import Glossary
from domainkit.graph import ConceptGraph
from domainkit.kinds import Corpus, Kind, Prepared, load_kind
from domainkit.link import FILE as LINKING
from domainkit.link import Linker
from domainkit.model import bundle
from domainkit.model.base import Base, load_base
from domainkit.model.derived import derive
from domainkit.model.lexicon import Taught, reserve, teach
from domainkit.model.names import embed_names
from domainkit.model.split import check_layers, check_split
from domainkit.progress import say
from domainkit.spec import Domain, Source, Task, Training
from domainkit.types import Example, UserError
from domainkit.versions import versions
from domainkit.workers import ALONE, Workers


@dataclass(frozen=True)
class Request:
    """What a user asks of `finetune`; the fields are the options of the command line."""

    domain: str
    base: str = "smollm2-135m"
    out: Path | None = None
    tasks: tuple[str, ...] = ()
    data: tuple[str, ...] = ()  # "PATH" for the first task or "TASK=PATH"
    format: str = ""  # of `data`; "": as the names of its files say
    limit: int | None = None  # documents of each source
    resume: bool = False
    seed: int = 0
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    hub: bool = False
    overwrite: bool = False
    workers: Workers = ALONE  # for the trunk's pass and the evaluation


@dataclass(frozen=True)
class Setting:
    """A request made concrete: the domain, the base, and every task with its data ready."""

    domain: Domain
    base: Base
    kinds: Mapping[str, Kind]
    prepared: Mapping[str, Prepared]
    data: Mapping[str, Any]  # source → path, SHA-256
    taught: Taught | None = None  # the glossary's tokens, if it has one
    glossary: Glossary | None = None
    graph: ConceptGraph | None = None
    linker: Linker | None = None


def prepare(request: Request, domain: Domain, run: Path | None = None, *, outline: Base | None = None) -> Setting:
    """Load the base, teach it the glossary, read and tokenize every task's data.

    run: a finished one, to be evaluated: test data only, its own labels and glossary tokens. outline: the base without
    its weights, to be taken in its place; what takes long and changes no count is then left out.
    """
    record = bundle.read(run) if run else None
    training, glossary = domain.training, _glossary(domain)
    graph = ConceptGraph.load(training.graph) if training.graph else None
    tasks = [domain.task(name) for name in request.tasks] or list(domain.tasks)
    given = _given(request.data, tasks)
    kinds = {task.name: load_kind(task) for task in tasks}  # a wrong setting is found before the base is loaded
    _check(training, learns=glossary is not None and not run)
    base = outline or _loaded(request, training, record)
    if outline:
        check_layers(base, training.layers)
    sources = {
        task.name: _sources(task, given.get(task.name), request.format, alone=record is not None) for task in tasks
    }
    examples = {name: {s.name: _read(s, request.limit) for s in found} for name, found in sources.items()}
    taught = None
    if run and record:
        base = bundle.restore_rows(run, base, record)
    elif glossary:
        taught = _teach(base, glossary, examples, training, request.seed, dry=outline is not None)
        base = taught.base
    if not (request.tasks or base.added):
        tasks = _wordless(tasks)
    prepared: dict[str, Prepared] = {}
    for task in tasks:
        own = sources[task.name]
        corpus = Corpus(
            domain.name, examples[task.name], {s.name: s.part for s in own}, training.context, request.seed,
            held_out=not (record and task.name in given), glossary=glossary, graph=graph,
            splits={s.name: s.split for s in own},
        )  # fmt: skip
        ready = kinds[task.name].prepare(corpus, base) if outline else _ready(kinds[task.name], corpus, base)
        ready = replace(ready, adapter=task.adapter, epochs=task.epochs, depths=len(training.depths))
        prepared[task.name] = _tested(ready, record.tasks[task.name]["labels"]) if record else ready
    kinds = {task.name: kinds[task.name] for task in tasks}
    data = {f"{name}/{s.name}": _provenance(s.path, s.format) for name in kinds for s in sources[name]}
    linker = None if outline else _linker(graph, prepared.values(), base, run)
    return Setting(domain, base, kinds, prepared, data, taught, glossary, graph, linker)


def _check(training: Training, *, learns: bool) -> None:
    """Raises UserError for settings that exclude each other. learns: whether a glossary's rows have to be learned."""
    if training.steer and training.attention == "lsh":
        raise UserError("a learned lean needs a mask of tokens x tokens, which LSH attention never has",
                        where="training.steer", instead="--set steer=false or --set attention=sdpa")  # fmt: skip
    if training.precision == "fp8" and learns:
        raise UserError("the rows of a glossary's terms are learned through the lowest layers, and products in fp8 "
                        "have no gradient", where="training.precision",
                        instead="--no-glossary, or --set precision=auto")  # fmt: skip


def _loaded(request: Request, training: Training, record: bundle.Record | None) -> Base:
    """The base, which a run's record knows, and whose top is what plain Transformers computes."""
    base = load_base(
        request.base, bits=training.bits, precision=training.precision, attention=training.attention,
        context=training.context, hub=request.hub, stream=training.stream, keep=training.layers,
    )  # fmt: skip
    if record:
        bundle.check_base(record, base)
    # Once proved it stays so, and the trunk's layers need not be read for it again.
    derive(kept(), "split", [base.origin, training.layers], lambda: check_split(base, training.layers))
    return base


def _read(source: Source, limit: int | None) -> list[Example]:
    return list(_few(read(source.path, language=source.language, source=source.name, format=source.format), limit))


def _tested(ready: Prepared, labels: Sequence[str]) -> Prepared:
    """Without what is learned from, and with the labels that were learned."""
    return replace(ready, train=(), check=(), labelled=(), learned=(), labels=tuple(labels))


def kept() -> Path:
    """Folder of what is derived."""
    return cache_dir() / "derived"


def _ready(kind: Kind, corpus: Corpus, base: Base) -> Prepared:
    """What a task makes of its corpus: cleaning and cutting a large one takes long, and seldom does anything change."""

    def make() -> Prepared:
        count = sum(len(found) for found in corpus.examples.values())
        say(f"{kind.name}: cleaning and cutting {count:,} documents …")
        return kind.prepare(corpus, base)

    known = [corpus.glossary and corpus.glossary.sha256, corpus.graph and _provenance(corpus.graph.path, "")["sha256"]]
    of = [type(kind).__module__, vars(kind), replace(corpus, glossary=None, graph=None), known, base.origin, base.rows]
    return derive(kept(), "task", of, make)


def _glossary(domain: Domain) -> Glossary | None:
    """The domain's glossary; a file's path is taken from the domain's folder first."""
    name = domain.training.glossary
    beside = domain.path / name
    return Glossary.load(str(beside) if beside.is_file() else name) if name else None


def _linker(graph: ConceptGraph | None, prepared: Iterable[Prepared], base: Base, run: Path | None) -> Linker | None:
    """Links to the concepts of the graph, as the documents of the tasks teach it or a run has learned it."""
    if graph is None:
        return None
    embed = partial(embed_names, base)
    if run:
        return Linker.load(run, graph, embed=embed) if (run / LINKING).exists() else None
    learned = {e.text: e for p in prepared for e in p.learned}  # several tasks may learn from one document
    documents = [e for e in learned.values() if any(span.concept for span in e.spans)]
    if not documents:
        return None
    say(f"learning to link from {len(documents)} documents …")
    return Linker.taught(graph, documents, embed=embed)


def _wordless(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that can do without tokens for the terms of a glossary."""
    for task in tasks:
        if task.kind == "terms":
            say(f"task {task.name} is left out: it asks for terms, and they have no tokens of their own")
    return [task for task in tasks if task.kind != "terms"]


def _teach(base: Base, glossary: Glossary, examples: Mapping[str, Mapping[str, Sequence[Example]]],
           training: Training, seed: int, *, dry: bool) -> Taught:  # fmt: skip
    """Tokens for the glossary's terms, learned from what the tasks may learn from."""
    every = {(source, e.text): e for found in examples.values() for source, some in found.items() for e in some}
    learn, check = split(every.values())
    tokens = training.glossary_tokens
    if dry:
        return reserve(base, glossary, [e.text for e in learn], tokens=tokens)
    return teach(base, glossary, [e.text for e in learn], [e.text for e in check], tokens=tokens, seed=seed,
                 cache=kept())  # fmt: skip


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
        base=base.facts,
        training=asdict(domain.training),
        tasks=tasks,
        seed=request.seed,
        files=dict(domain.hashes),
        data=dict(setting.data),
        versions=versions(),
        limit=request.limit,
        processes=ranks.count(),
        glossary=_spoken(setting),
    )


def _spoken(setting: Setting) -> dict[str, Any]:
    """What a run's record says of its glossary."""
    if not (setting.glossary and setting.taught and setting.base.added):
        return {}
    base, taught = setting.base, setting.taught
    return {
        "name": setting.glossary.name,
        "sha256": setting.glossary.sha256,
        "rows": base.rows,
        "first": taught.vocabulary.first,
        "tokens": len(base.added),
        "megabytes": round(len(base.added) * base.width * 4 / 1e6 * (1 if base.tied else 2), 1),
        "left_out": dict(taught.vocabulary.left_out),
        "mismatch": dict(taught.mismatch),
    }


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


def _sources(task: Task, given: Path | None, format: str, *, alone: bool) -> tuple[Source, ...]:
    """A task's sources; the user's own data stands in for its domain text, or (`alone`) for all of it."""
    if given is None:
        return task.sources
    general = () if alone else tuple(s for s in task.sources if s.part == "general")  # stays in the mixture
    own = Source(path=given.absolute(), part="domain", language="", name=given.name, format=format)
    return (own, *general)


def _few(examples: Iterable[Example], limit: int | None) -> Iterable[Example]:
    """All examples, or `limit` of them that only their text decides, so that every run picks the same."""
    if limit is None:
        return examples
    return nsmallest(limit, examples, key=lambda e: sha256(e.text.encode()).digest())


def _provenance(path: Path, format: str) -> dict[str, str]:
    """Where data came from: path, format, and the SHA-256 of the file (or of the names and hashes below a folder)."""
    if path.is_file():
        return {"path": str(path), "sha256": digest(path), "format": format or path.name.partition(".")[2]}
    lines = [f"{p.relative_to(path)} {digest(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
    return {"path": str(path), "sha256": sha256("\n".join(lines).encode()).hexdigest(), "format": format or "folder"}
