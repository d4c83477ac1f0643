"""Layers that are on disk: what reads their weights when they are run, and drops them again or lets them stay."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from domainkit.model.routed import Routed

STATES = ("quant_state", "state")  # where bitsandbytes' modules keep what belongs to their weights


class Streamed:
    """What reads and drops the weights of a layer. `layer` is found in a decoder as ever, and so are views of it.

    read: all of them. lean: all but those of the experts that are `routed`, if they are.
    """

    def __init__(self, layer: nn.Module, read: Callable[[], None], lean: Callable[[], None],
                 routed: Routed | None = None) -> None:  # fmt: skip
        self._read, self._lean, self._routed, self._users = read, lean, routed, 0
        self._empty = tables(layer)
        self._states = [
            (vars(module), {name: copy.copy(vars(module)[name]) for name in STATES if name in vars(module)})
            for module in layer.modules()
        ]
        layer.register_forward_pre_hook(lambda module, given: self._use(self._users + 1, self._lean))
        layer.register_forward_hook(
            lambda module, given, out: self._use(max(self._users - 1, 0), self._lean), always_call=True
        )
        vars(layer)["streamed"] = self

    @contextmanager
    def held(self) -> Iterator[None]:
        """The weights stay in memory throughout this block."""
        before = self._users
        try:
            self._use(before + 1, self._read)
            yield
        finally:
            self._use(before, self._read)  # whatever broke off in between

    def rounds(self) -> Iterator[bool]:
        """See `rounds`."""
        before = self._users
        try:
            self._use(before + 1, self._lean)
            yield from self._routed.rounds() if self._routed else (True,)
        finally:
            self._use(before, self._lean)

    def _use(self, users: int, read: Callable[[], None]) -> None:
        """Have the weights in memory if there are users, now `users` of them, and not otherwise."""
        if not (users and self._users):  # before reading as well: an earlier one may have been broken off
            put(self._empty)
            for own, state in self._states:
                own.update({name: copy.copy(value) for name, value in state.items()})
        if users and not self._users:
            read()
        self._users = users


class Waiting:
    """Layers that are in no memory until one of them is run, or `fetch`ed: then all of them are read, to stay."""

    def __init__(self, layers: Sequence[nn.Module], read: Callable[[], None]) -> None:
        self._layers, self._read = layers, read
        self._hooks = [layer.register_forward_pre_hook(lambda module, given: self.read()) for layer in layers]
        for layer in layers:
            vars(layer)["waiting"] = self

    def read(self) -> None:
        if not self._hooks:  # a view of a layer may still know of them
            return
        self._read()
        for layer in self._layers:
            del vars(layer)["waiting"]
        while self._hooks:
            self._hooks.pop().remove()


def fetch(layers: Iterable[nn.Module]) -> None:
    """Read those of the layers now that wait to be run."""
    for layer in layers:
        if waits(layer):
            vars(layer)["waiting"].read()


def waits(layer: nn.Module) -> bool:
    """Whether a layer's weights will be read when it is run, and stay."""
    return "waiting" in vars(layer)


def is_streamed(layer: nn.Module) -> bool:
    """Whether a layer's weights are on disk."""
    return "streamed" in vars(layer)


@contextmanager
def held(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Those of the layers that are streamed stay in memory throughout this block."""
    with ExitStack() as stack:
        for layer in layers:
            if is_streamed(layer):
                stack.enter_context(vars(layer)["streamed"].held())
        yield


def rounds(layer: nn.Module) -> Iterator[bool]:
    """How often to give a layer the same inputs, and each time whether its outputs count. It is read once for them all.

    Its experts, if they are on disk, hear first what they will be asked; then it is computed.
    """
    if is_streamed(layer):
        yield from vars(layer)["streamed"].rounds()
    else:
        yield True


def tables(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The tables of parameters and buffers of a module and those below it, each with what stands in it now."""
    return [(table, dict(table)) for m in module.modules() for table in (m._parameters, m._buffers)]


def put(tables: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """What stood in tables stands in them again."""
    for table, content in tables:
        table.update(content)
