"""What `domainkit.nets.grid` does, as a kernel for a CPU: one pass in place of a dozen small operations, each of which
would hand the interpreter's lock from thread to thread."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from domainkit.nets.compiled import LOOSE, kernel
from domainkit.nets.grid import BOUND, LEAST, MOST

EDGE, FURTHEST, FAR = np.float32(MOST), np.float32(LEAST), np.float32(BOUND)


def asked(q: Tensor, lse: Tensor, middle: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """`Grid.asked` of float32, its whole numbers int8."""
    heads, tokens, group, width = q.shape
    whole = torch.empty(heads, group, tokens, width, dtype=torch.int8)
    offset = torch.empty(heads, group, tokens, dtype=torch.int32)
    given = (of.numpy() for of in (q, lse, middle[:, 0], step[:, 0, 0]))
    _asked(*given, whole.numpy(), offset.numpy())
    return whole, offset


@kernel(LOOSE)
def _asked(q, lse, middle, step, whole, offset):  # type: ignore[no-untyped-def]
    heads, tokens, group, width = q.shape
    for head in range(heads):
        for token in range(tokens):
            furthest = FURTHEST
            for member in range(group):
                for column in range(width):
                    furthest = max(furthest, abs(q[head, token, member, column]))
            to_units = EDGE / furthest
            for member in range(group):
                along = np.float32(0)
                for column in range(width):
                    number = q[head, token, member, column]
                    along += number * middle[head, column]
                    whole[head, member, token, column] = np.int8(np.rint(-number * to_units))
                beside = (lse[head, token, member] - along) * to_units / step[head]
                offset[head, member, token] = np.int32(min(max(np.rint(beside), -FAR), FAR))
