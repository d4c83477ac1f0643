"""What analysts edit: TOML files, read into frozen values, every key checked."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from domainkit import assets
from domainkit.fill import Faults, fill
from domainkit.types import UserError

DOMAIN_FILE = "domain.toml"  # every other TOML in the folder is a task


@dataclass(frozen=True)
class Source:
    """One file or folder of documents."""

    path: Path  # absolute once loaded; relative to the task file in the TOML
    part: str = field(metadata={"choices": ("domain", "general")})
    language: str  # ISO 639-1
    name: str = ""  # unique in its task; the file's name without suffix when not given
    split: str = field(default="", metadata={"choices": ("", "train", "test")})  # "": by the hash of each document
    format: str = ""  # of the files, one of `data.read.FORMATS`; "": as their names say


@dataclass(frozen=True)
class Training:
    """How the top is trained; [training] in domain.toml."""

    glossary: str = ""  # whose terms get tokens of their own: a shipped one, or a TSV file; "" for none
    glossary_tokens: int = field(default=30_000, metadata={"min": 0})  # read to learn their rows
    graph: str = ""  # concept graph of the domain: a shipped one, or a folder; "" for none
    balance: bool = False  # weigh the losses of the tasks by what is uncertain about each
    steer: bool = False  # let the last layers' attention lean towards the glossary's tokens
    layers: int = field(default=2, metadata={"min": 1})  # last layers that learn
    depths: tuple[int, ...] = ()  # layers passed, of the trunk: what leaves them is kept for the heads that read it
    rank: int = field(default=16, metadata={"min": 1})  # of the LoRA matrices
    alpha: int = field(default=32, metadata={"min": 1})  # LoRA scale, times 1 / rank
    learning_rate: float = field(default=3e-3, metadata={"min": 1e-8, "max": 1.0})
    epochs: int = field(default=3, metadata={"min": 1})
    context: int = field(default=512, metadata={"min": 2})  # tokens per sequence, and of a row that short ones share
    batch: int = field(default=1, metadata={"min": 1})  # rows per optimizer step
    micro_batch: int = field(default=0, metadata={"min": 0})  # of them computed at once; 0: as many as memory allows
    warmup: float = field(default=0.1, metadata={"min": 0.0, "max": 0.99})  # share of all steps
    max_grad_norm: float = field(default=1.0, metadata={"min": 1e-8})
    bits: int = field(default=4, metadata={"choices": (4, 8, 16, 32)})  # per weight of the frozen base
    precision: str = field(  # that the base is computed in
        default="auto", metadata={"choices": ("auto", "float32", "bfloat16", "float16", "fp8")}
    )
    stream: str = field(default="auto", metadata={"choices": ("auto", "always", "never")})  # lower layers stay on disk
    attention: str = field(default="sdpa", metadata={"choices": ("sdpa", "eager", "lsh")})
    activations: str = field(default="auto", metadata={"choices": ("auto", "float16", "float32")})  # on disk
    disk_gb: float = field(default=10.0, metadata={"min": 0.0})  # budget of all stored activations, 1e9 bytes
    save_steps: int = field(default=200, metadata={"min": 1})  # optimizer steps between checkpoints
    deepspeed: str = ""  # under torchrun: DeepSpeed's own JSON file; "" for none
    fsdp: str = ""  # under torchrun: FSDP2's settings as the Trainer takes them, a JSON file; "" for none


@dataclass(frozen=True)
class Task:
    """One task file. `settings` are checked by the task's kind."""

    name: str
    kind: str
    title: str
    sources: tuple[Source, ...]
    settings: Mapping[str, object]
    adapter: str  # tasks that name the same one train it together
    epochs: int  # times every training text is seen; 0: as often as the domain says
    path: Path
    origin: str  # where the settings come from, for messages: the file, and what was laid over it


@dataclass(frozen=True)
class _TaskFile:
    kind: str
    title: str
    sources: tuple[Source, ...]
    adapter: str = "default"
    epochs: int = field(default=0, metadata={"min": 0})
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class _DomainFile:
    title: str
    description: str = ""
    training: dict = field(default_factory=dict)


@dataclass(frozen=True)
class _Overlay:
    """A --config file, or all --set together."""

    training: dict = field(default_factory=dict)
    tasks: dict[str, dict] = field(default_factory=dict)  # task → settings


@dataclass(frozen=True)
class Domain:
    """A folder of `domain.toml` and task files."""

    name: str
    title: str
    description: str
    training: Training
    tasks: tuple[Task, ...]  # in the order of their names
    path: Path
    hashes: Mapping[str, str]  # TOML file → SHA-256

    @classmethod
    def load(cls, name_or_path: str, *, config: Path | None = None, overrides: Sequence[str] = ()) -> Domain:
        """Read a shipped domain by name, or one of your own by its folder.

        `config`: a TOML file with [training] and [tasks.NAME] tables, laid over the domain's own.
        `overrides`: "KEY=VALUE" or "training.KEY=VALUE" for training, "TASK.KEY=VALUE" for a task's settings;
        they are laid over everything. Raises UserError for an unknown domain, task or key, or a wrong value.
        """
        folder = find(name_or_path)
        paths = sorted(path for path in folder.glob("*.toml") if path.name != DOMAIN_FILE)
        if not paths:
            raise UserError("no task here", where=folder, instead=f"a TOML file beside {DOMAIN_FILE}")
        read = {path.name: _toml(path) for path in (folder / DOMAIN_FILE, *paths)}
        where = _shown(folder / DOMAIN_FILE)
        own = fill(_DomainFile, read[DOMAIN_FILE][0], where=where)
        tasks = {path.stem: _task(path, read[path.name][0]) for path in paths}
        training = asdict(fill(Training, own.training, where=where))
        if training["graph"] and (folder / training["graph"]).is_dir():
            training["graph"] = str((folder / training["graph"]).resolve())  # a run finds it again
        for key in ("deepspeed", "fsdp"):
            if training[key] and (folder / training[key]).is_file():
                training[key] = str((folder / training[key]).resolve())
        for overlay, where in _overlays(config, overrides, tasks):
            fill(Training, overlay.training, where=where)  # by itself: a fault is blamed on its own file
            training |= overlay.training
            for name, settings in overlay.tasks.items():
                merged, origin = {**tasks[name].settings, **settings}, f"{tasks[name].origin} with {where}"
                tasks[name] = replace(tasks[name], settings=MappingProxyType(merged), origin=origin)
        hashes = {name: digest for name, (_, digest) in read.items()}
        return cls(
            folder.resolve().name, own.title, own.description, fill(Training, training, where=where),
            tuple(tasks.values()), folder, hashes,
        )  # fmt: skip

    def task(self, name: str) -> Task:
        """The task of that name. Raises UserError naming those there are."""
        known = {task.name: task for task in self.tasks}
        if name not in known:
            raise UserError(f"unknown task {name!r} in domain {self.name}", instead=_instead(name, known))
        return known[name]


def find(name_or_path: str) -> Path:
    """The folder of a domain: a shipped name first, then a path. Raises UserError naming the shipped ones."""
    root = assets.ROOT / "tasks"
    known = sorted(path.parent.name for path in root.glob(f"*/{DOMAIN_FILE}"))
    if name_or_path in known:
        return root / name_or_path
    folder = Path(name_or_path).expanduser()
    if (folder / DOMAIN_FILE).is_file():
        return folder
    remedy = f"{_instead(name_or_path, known)}, or a folder with {DOMAIN_FILE}"
    if folder.is_dir():
        raise UserError(f"no {DOMAIN_FILE} here", where=folder, instead=remedy)
    raise UserError(f"unknown domain {name_or_path!r}", instead=remedy)


def _instead(name: str, known: Iterable[str]) -> str:
    """The known name closest to a wrong one, and all of them."""
    close, every = get_close_matches(name, known, n=1), f"one of {sorted(known)}"
    return f"{close[0]!r} ({every})" if close else every


def _toml(path: Path) -> tuple[dict[str, Any], str]:
    """A TOML file's table and SHA-256, both of the same bytes."""
    try:
        raw = path.read_bytes()
        return tomllib.loads(raw.decode("utf-8-sig")), sha256(raw).hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=path, instead="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not valid TOML: {error}", where=path, instead="KEY = VALUE lines") from None


def _shown(path: Path) -> str:
    """tasks/finance/lm.toml rather than the long way to it."""
    return "/".join(path.parts[-3:]) if path.is_relative_to(assets.ROOT / "tasks") else str(path)


def _task(path: Path, table: Mapping[str, Any]) -> Task:
    """A task from its file, source paths made absolute and source names given and unique."""
    where = _shown(path)
    own = fill(_TaskFile, table, where=where)
    faults, sources = Faults(where), {}
    for s in own.sources:
        name = s.name or s.path.name.split(".")[0]
        if name in sources:
            faults.add(f"two sources are called {name!r}", 'name = "…" to tell them apart')
        sources[name] = replace(s, path=(path.parent / s.path).absolute(), name=name)
    if not sources:
        faults.add("no source", "at least one [[sources]] table")
    faults.stop()
    settings = MappingProxyType(own.settings)
    return Task(path.stem, own.kind, own.title, tuple(sources.values()), settings, own.adapter, own.epochs, path, where)


def _overlays(config: Path | None, overrides: Sequence[str], known: Iterable[str]) -> list[tuple[_Overlay, str]]:
    """What --config and --set lay over the files, in this order. Their tasks are `known`."""
    found = [(fill(_Overlay, _toml(config)[0], where=str(config)), str(config))] if config else []
    found += [(_assignments(overrides), "--set")] if overrides else []
    for overlay, where in found:
        faults = Faults(where)
        for name in sorted(overlay.tasks.keys() - set(known)):
            faults.add(f"unknown task {name!r}", _instead(name, known))
        faults.stop()
    return found


def _assignments(overrides: Sequence[str]) -> _Overlay:
    """ "epochs=2", "training.epochs=2" and "lm.share=0.4" as an overlay."""
    overlay, faults = _Overlay(), Faults("--set")
    for text in overrides:
        key, equals, value = text.partition("=")
        owner, _, name = key.strip().rpartition(".")
        if not (equals and name):
            faults.add(f"{text!r} sets nothing", "KEY=VALUE or TASK.KEY=VALUE")
        elif owner in ("", "training"):
            overlay.training[name] = _literal(value)
        else:
            overlay.tasks.setdefault(owner, {})[name] = _literal(value)
    faults.stop()
    return overlay


def _literal(text: str) -> Any:
    """A TOML value; a string when it is not one."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return table["value"] if len(table) == 1 else text.strip()  # more keys: the text held a line break
