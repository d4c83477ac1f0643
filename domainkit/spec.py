"""What analysts edit: TOML files, read into frozen values, every key checked."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from domainkit import assets
from domainkit.types import UserError

T = TypeVar("T")
SHOWN = 5  # faults spelled out in one message; the rest are counted
DOMAIN_FILE = "domain.toml"  # every other TOML in the folder is a task
_NAMES = {
    str: "a string", bool: "true or false", int: "a whole number", float: "a number",
    dict: "a table", list: "a list", tuple: "a list", Path: "a string",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One file or folder of documents."""

    path: Path  # absolute once loaded; relative to the task file in the TOML
    part: str = field(metadata={"choices": ("domain", "general")})
    language: str  # ISO 639-1
    name: str = ""  # unique in its task; the file's name without suffix when not given


@dataclass(frozen=True)
class Training:
    """How the top is trained; [training] in domain.toml."""

    layers: int = field(default=2, metadata={"min": 1})  # last layers that learn
    rank: int = field(default=16, metadata={"min": 1})  # of the LoRA matrices
    alpha: int = field(default=32, metadata={"min": 1})  # LoRA scale, times 1 / rank
    learning_rate: float = field(default=2e-3, metadata={"min": 1e-8, "max": 1.0})
    epochs: int = field(default=3, metadata={"min": 1})
    batch_tokens: int = field(default=2048, metadata={"min": 1})  # tokens per micro-batch
    accumulation: int = field(default=1, metadata={"min": 1})  # micro-batches per optimizer step
    context: int = field(default=512, metadata={"min": 2})  # tokens per sequence
    warmup: float = field(default=0.1, metadata={"min": 0.0, "max": 0.99})  # share of all steps
    max_grad_norm: float = field(default=1.0, metadata={"min": 1e-8})
    bits: int = field(default=4, metadata={"choices": (4, 8, 16, 32)})  # per weight of the frozen base
    attention: str = field(default="sdpa", metadata={"choices": ("sdpa", "eager")})
    activations: str = field(default="auto", metadata={"choices": ("auto", "float16", "float32")})  # on disk
    disk_gb: float = field(default=10.0, metadata={"min": 0.0})  # budget of all stored activations, 1e9 bytes
    save_steps: int = field(default=50, metadata={"min": 1})  # optimizer steps between checkpoints


@dataclass(frozen=True)
class Task:
    """One task file. `settings` are checked by the task's kind."""

    name: str
    kind: str
    title: str
    sources: tuple[Source, ...]
    settings: Mapping[str, object]
    adapter: str  # tasks that name the same one train it together
    path: Path
    origin: str  # where the settings come from, for messages: the file, and what was laid over it


@dataclass(frozen=True)
class _TaskFile:
    kind: str
    title: str
    sources: tuple[Source, ...]
    adapter: str = "default"
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


def fill(cls: type[T], table: Mapping[str, Any], *, where: str) -> T:
    """An instance of the frozen dataclass `cls` from a TOML table.

    Types come from the annotations: a whole number passes for float, true and false never for a number, a
    string for Path, a list for tuple[X, ...], a table for a dataclass. Field metadata may hold "min", "max"
    (both inclusive) and "choices". Raises UserError with all faults of the table.
    """
    faults = _Faults(where)
    value = _fill(cls, table, "", faults)
    faults.stop()
    return value


@dataclass
class _Faults:
    """Everything wrong in one place, in order."""

    where: str
    found: list[tuple[str, str]] = field(default_factory=list)  # what, instead

    def add(self, what: str, instead: str = "") -> None:
        self.found.append((what, instead))

    def stop(self) -> None:
        """Raise what was found, if anything, as one UserError."""
        if len(self.found) == 1:
            what, instead = self.found[0]
            raise UserError(what, where="" if what.startswith("unknown key") else self.where, instead=instead)
        if self.found:
            lines = [str(UserError(what, instead=instead)) for what, instead in self.found[:SHOWN]]
            lines += [f"and {len(self.found) - SHOWN} more"] * (len(self.found) > SHOWN)
            raise UserError("\n  ".join((f"{len(self.found)} faults", *lines)), where=self.where)


def _fill(cls: type, table: Mapping[str, Any], at: str, faults: _Faults) -> Any:
    """`at`: the way from the top of the file to this table, e.g. "sources[1]."."""
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}
    for key in sorted(table.keys() - known.keys()):
        close = ", ".join(get_close_matches(key, known, n=1))
        faults.add(f"unknown key [{at + key!r}] in {faults.where}; known: {sorted(known)}", close)
    values = {}
    for name, one in known.items():
        if name in table:
            values[name] = _value(hints[name], table[name], at + name, faults)
            _check_range(one, values[name], at + name, faults)
        elif one.default is MISSING and one.default_factory is MISSING:
            faults.add(f"missing key {at + name!r}", f"{name} = {_kind(hints[name])}")
    return None if faults.found else cls(**values)


def _value(hint: Any, value: Any, at: str, faults: _Faults) -> Any:
    """`value` as what the annotation `hint` asks for; None and a new fault when it is something else."""
    origin, number = get_origin(hint), isinstance(value, int | float) and not isinstance(value, bool)
    if origin is tuple and isinstance(value, list | tuple):
        item = get_args(hint)[0]
        return tuple(_value(item, one, f"{at}[{i}]", faults) for i, one in enumerate(value, 1))
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(get_args(hint)[1], one, f"{at}.{key}", faults) for key, one in value.items()}
    if is_dataclass(hint) and isinstance(value, Mapping):
        return _fill(hint, value, f"{at}.", faults)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is float and number and math.isfinite(value):
        return float(value)
    if (hint in (str, bool, dict, list) or (hint is int and number)) and isinstance(value, hint):
        return value
    kind = "" if number else f"{_kind(type(value))}, "
    faults.add(f"{at}: {value!r} is {kind}not {_kind(hint)}")
    return None


def _check_range(one: Field, value: Any, at: str, faults: _Faults) -> None:
    bounds = one.metadata
    if value is None:  # its type is at fault already
        return
    if "choices" in bounds and value not in bounds["choices"]:
        faults.add(f"{at}: unknown value {value!r}", f"one of {list(bounds['choices'])}")
    if "min" in bounds and value < bounds["min"]:
        faults.add(f"{at}: {value!r} is too small", f"at least {bounds['min']}")
    if "max" in bounds and value > bounds["max"]:
        faults.add(f"{at}: {value!r} is too large", f"at most {bounds['max']}")


def _kind(hint: Any) -> str:
    """What an annotation asks for, in words."""
    plain = get_origin(hint) or hint
    return "a table" if is_dataclass(plain) else _NAMES.get(plain, plain.__name__)


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
    faults, sources = _Faults(where), {}
    for s in own.sources:
        name = s.name or s.path.name.split(".")[0]
        if name in sources:
            faults.add(f"two sources are called {name!r}", 'name = "…" to tell them apart')
        sources[name] = replace(s, path=(path.parent / s.path).absolute(), name=name)
    if not sources:
        faults.add("no source", "at least one [[sources]] table")
    faults.stop()
    settings = MappingProxyType(own.settings)
    return Task(path.stem, own.kind, own.title, tuple(sources.values()), settings, own.adapter, path, where)


def _overlays(config: Path | None, overrides: Sequence[str], known: Iterable[str]) -> list[tuple[_Overlay, str]]:
    """What --config and --set lay over the files, in this order. Their tasks are `known`."""
    found = [(fill(_Overlay, _toml(config)[0], where=str(config)), str(config))] if config else []
    found += [(_assignments(overrides), "--set")] if overrides else []
    for overlay, where in found:
        faults = _Faults(where)
        for name in sorted(overlay.tasks.keys() - set(known)):
            faults.add(f"unknown task {name!r}", _instead(name, known))
        faults.stop()
    return found


def _assignments(overrides: Sequence[str]) -> _Overlay:
    """ "epochs=2", "training.epochs=2" and "lm.share=0.4" as an overlay."""
    overlay, faults = _Overlay(), _Faults("--set")
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
