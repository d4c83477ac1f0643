"""How many bytes the tensors of a computation take at most, without memory for them: it works on the meta device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from domainkit.heap import LARGE

COPYING = {torch.ops.aten.logsumexp.default}  # kernels that make a copy of their input


class Meter(TorchDispatchMode):
    """Within this block counts the bytes of the tensors that operations make, views once: `now` are alive, `peak` were
    at most; `small` and `kept` are those of tensors below LARGE, whose memory a process on a CPU keeps when they go.
    What was there before (weights, inputs) does not count, nor what most kernels need inside themselves.

    >>> with Meter() as meter: made = torch.empty(1000, device="meta") + 1
    >>> meter.now, meter.peak
    (4000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.small = self.kept = 0
        self._known: dict[int, ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._meet(storage, 0)
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            self._meet(storage, storage.nbytes())
        if func in COPYING:
            self.peak = max(self.peak, self.now + args[0].nbytes)
        return found

    def _meet(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count a storage until it goes, if it is a new one."""
        key = storage._cdata
        if key in self._known:
            return

        small = size if size < LARGE else 0

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size
            self.small -= small

        self._known[key] = ref(storage, gone)
        self.now += size
        self.small += small
        self.peak, self.kept = max(self.peak, self.now), max(self.kept, self.small)


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
