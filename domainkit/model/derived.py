"""Values that follow from what does not change: made once, kept on disk, found again by all that they follow from.

    <root>/<name>-<key>.safetensors   the value's tensors, and the rest of it as JSON; its metadata hold its SHA-256

The key is the SHA-256 of what the value follows from, of domainkit's own sources and of the versions of what they call.
So a value of another base, glossary, option or version is never found, and the one that is found has the very bits
that would be made anew.

A value is any nest of tuples, lists, tables, dataclasses of domainkit, tensors, arrays, text and numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from domainkit.files import sweep, write_atomic
from domainkit.progress import say
from domainkit.versions import code, versions

ROOM = 2_000_000_000  # bytes of all values below one root; beyond it those go that nobody asked for longest
STALE = 3600.0  # seconds after which what is still being written is taken for a killed process's
REST = "rest"  # name of the JSON, among tensors that are called by numbers

T = TypeVar("T")

code()  # at once: the sources may change while this process runs


def derive(root: Path, name: str, of: object, make: Callable[[], T]) -> T:
    """What `make` returns; whoever asks for the same again, now or in another process, gets an equal one from disk.

    of: all that the value follows from, a value itself; code and versions are added to it. Tensors come on the CPU,
    and nothing else holds them. A file that is not as it was written is named, deleted and made anew. Raises UserError
    when the disk is full or read-only.
    """
    key = _sha256(_taken_apart([name, of, code(), versions()]))
    path = root / f"{name}-{key[:24]}.safetensors"
    parts = _read(path, key)
    if parts is None:
        parts = _taken_apart(make())
        raw = safetensors.torch.save(parts, {"of": key, "sha256": _sha256(parts)})
        write_atomic(path, lambda draft: draft.write_bytes(raw))
        _make_room(path)
    return cast(T, _put_together(json.loads(parts[REST].numpy().tobytes()), parts))


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """The parts of the value in `path`, if there is one and it is sound."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            told, parts = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        sound = (told["of"], told["sha256"]) == (key, _sha256(parts))
    except FileNotFoundError:  # another process has just deleted it to make room
        return None
    except (SafetensorError, OSError, KeyError, TypeError):
        sound = False
    if not sound:
        say(f"{path}: changed since it was written; it is made anew")
        path.unlink(missing_ok=True)
        return None
    with suppress(OSError):  # where others may only read
        os.utime(path)
    return parts


def _taken_apart(value: object) -> dict[str, Tensor]:
    """The tensors of a value, called by numbers, and its REST."""
    parts: dict[str, Tensor] = {}
    text = json.dumps(_rest(value, parts), ensure_ascii=False)
    parts[REST] = torch.frombuffer(bytearray(text.encode("utf-8", "surrogatepass")), dtype=torch.uint8)
    return parts


def _rest(value: Any, parts: dict[str, Tensor]) -> Any:
    """What JSON can hold of a value; its tensors go to `parts`."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Tensor | np.ndarray):
        number = str(len(parts))
        parts[number] = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"array" if isinstance(value, np.ndarray) else "tensor": number}
    if isinstance(value, tuple):
        if all(type(one) is int for one in value):
            return {"numbers": value}
        return {"tuple": [_rest(one, parts) for one in value]}
    if isinstance(value, list):
        return [_rest(one, parts) for one in value]
    if isinstance(value, Mapping):
        return {"table": [[_rest(key, parts), _rest(one, parts)] for key, one in value.items()]}
    if is_dataclass(value):
        cls: Any = type(value)
        return {f"{cls.__module__}:{cls.__name__}": [_rest(getattr(value, f.name), parts) for f in fields(cls)]}
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def _put_together(rest: Any, parts: Mapping[str, Tensor]) -> Any:
    """The value whose REST and tensors these are."""
    if isinstance(rest, list):
        return [_put_together(one, parts) for one in rest]
    if not isinstance(rest, dict):
        return rest
    ((kind, inner),) = rest.items()
    if kind in ("array", "tensor"):
        return parts[inner].numpy() if kind == "array" else parts[inner]
    if kind in ("numbers", "tuple"):
        return tuple(inner if kind == "numbers" else [_put_together(one, parts) for one in inner])
    if kind == "table":
        return {_put_together(key, parts): _put_together(one, parts) for key, one in inner}
    module, _, name = kind.partition(":")
    cls = getattr(import_module(module), name)
    return cls(**{f.name: _put_together(one, parts) for f, one in zip(fields(cls), inner, strict=True)})


def _sha256(parts: Mapping[str, Tensor]) -> str:
    shapes = {name: [str(parts[name].dtype), *parts[name].shape] for name in sorted(parts)}
    total = sha256(json.dumps(shapes).encode())
    for name in shapes:
        total.update(parts[name].flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _make_room(newest: Path) -> None:
    """Delete what nobody asked for longest, never the newest, until all values beside it fit into ROOM."""
    sweep(newest.parent, older=STALE)
    found = []
    for path in newest.parent.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process is making room as well
            stat = path.stat()
            found.append((path == newest, stat.st_mtime, stat.st_size, path))
    used = sum(size for _, _, size, _ in found)
    for last, _, size, path in sorted(found):
        if used <= ROOM or last:
            return
        used -= size
        path.unlink(missing_ok=True)
