"""Frozen dataclasses from tables that people wrote: every key, type and range checked, all faults told at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from domainkit.types import UserError

T = TypeVar("T")
SHOWN = 5  # faults spelled out in one message; the rest are counted
_NAMES = {
    str: "a string", bool: "true or false", int: "a whole number", float: "a number",
    dict: "a table", list: "a list", tuple: "a list", Path: "a string",
}  # fmt: skip


def fill(cls: type[T], table: Mapping[str, Any], *, where: str) -> T:
    """An instance of the frozen dataclass `cls` from a TOML table.

    Types come from the annotations: a whole number passes for float, true and false never for a number, a
    string for Path, a list for tuple[X, ...], a table for a dataclass. Field metadata may hold "min", "max"
    (both inclusive) and "choices". Raises UserError with all faults of the table.
    """
    faults = Faults(where)
    value = _fill(cls, table, "", faults)
    faults.stop()
    return value


@dataclass
class Faults:
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


def _fill(cls: type, table: Mapping[str, Any], at: str, faults: Faults) -> Any:
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


def _value(hint: Any, value: Any, at: str, faults: Faults) -> Any:
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


def _check_range(one: Field, value: Any, at: str, faults: Faults) -> None:
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
