"""Matrices in four bits a weight: whole numbers from 0 to 15 on an even grid, one grid for each block of a row.

A weight is step * (number - zero). Steps and zero points take eight bits each: a step in 255 parts of the row's widest
one, a zero point in 17 parts of a step. A row is one stretch of bytes, so rows can be looked up in a packed matrix:

    numbers  width / 2      the first half of the row in the lower four bits, the second half in the upper
    steps    width / block
    zeros    width / block
    widest   2              bfloat16

Such grids are the Q4_0 and Q4_1 of llama.cpp: weights that come from there keep their numbers. Of other weights each
block takes the range with the least squared error (Nagel et al. 2021, arXiv 2106.08295, section 3.1). Where it is known
what a matrix is multiplied with, the errors of a row are made up for by its later weights (GPTQ, Frantar et al. 2022,
arXiv 2210.17323).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

LEVELS, PARTS = 15, 17  # of a grid; of a step, in which zero points are told: 15 * 17 is 255
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of the block's range that are tried: a narrower one has finer steps
HEADROOM = 1.1  # of the widest step, for weights that make up for others
DAMPING = 0.1  # of the mean square of the states: rows are looked up as well, not only multiplied
AT_ONCE = 1 << 22  # weights that are packed together


def row_bytes(width: int, block: int) -> int:
    """Bytes of a packed row of so many weights."""
    return width // 2 + 2 * (width // block) + 2


def pack(weight: Tensor, block: int, moment: Tensor | None = None) -> Tensor:
    """weight: (rows, width) of any floating type; width: a multiple of 2 * block → (rows, row_bytes) uint8.

    moment: second moment of the states that the rows are multiplied with, (width, width); None: not known.
    """
    carry = None if moment is None else _carry(moment)
    parts = weight.split(max(1, AT_ONCE // weight.shape[1]))
    return torch.cat([_pack(part.float(), block, carry) for part in parts])


def _pack(weight: Tensor, block: int, carry: Tensor | None) -> Tensor:
    rows = weight.unflatten(1, (-1, block))  # (rows, blocks, block)
    low, high = _range(rows)
    room = 1 + 2**-8 if carry is None else HEADROOM  # what is rounded to bfloat16 must not be narrower
    widest = (room / LEVELS * (high - low)).amax(1, keepdim=True).clamp(min=1e-30).to(torch.bfloat16)
    numbers, steps, zeros = _best(rows, widest) if carry is None else _made_up(weight, block, widest, carry)
    lower, upper = numbers.to(torch.uint8).flatten(1).chunk(2, -1)
    told = [lower | upper << 4, steps.to(torch.uint8), zeros.to(torch.uint8), widest.view(torch.uint8)]
    return torch.cat(told, -1)


def _carry(moment: Tensor) -> Tensor:
    """What the later weights of a row take over of the error of each: (width, width), upper triangular."""
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment))
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return spread / spread.diagonal()[:, None]


def _made_up(weight: Tensor, block: int, widest: Tensor, carry: Tensor) -> list[Tensor]:
    """Numbers, steps and zeros of all blocks, one block after the other."""
    weight, found = weight.clone(), []
    for at in range(0, weight.shape[1], block):
        here, later = slice(at, at + block), slice(at + block, None)
        part = weight[:, here]
        _, steps, zeros = _best(part[:, None], widest)
        step, zero = _grid(steps, zeros, widest)  # (rows, 1)
        numbers, errors = torch.empty_like(part), torch.empty_like(part)
        for i in range(block):
            one = slice(i, i + 1)
            numbers[:, one] = _numbers(part[:, one], step, zero)
            errors[:, one] = part[:, one] - (numbers[:, one] - zero) * step
            part[:, i + 1 :] -= errors[:, one] * carry[at + i, at + i + 1 : at + block]
        weight[:, later] -= errors @ carry[here, later]
        found.append((numbers, steps, zeros))
    return [torch.cat(each, 1) for each in zip(*found, strict=True)]


def _best(rows: Tensor, widest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (rows, blocks, block), steps and zeros (rows, blocks) in their parts, of each block's best range."""
    low, high = _range(rows)
    found = _tried(rows, low, high, widest)
    for share in SHARES[1:]:
        tried = _tried(rows, share * low, share * high, widest)
        better = tried[3] < found[3]
        numbers = torch.where(better[..., None], tried[0], found[0])
        steps, zeros, lost = (torch.where(better, a, b) for a, b in zip(tried[1:], found[1:], strict=True))
        found = numbers, steps, zeros, lost
    return found[:3]


def _tried(rows: Tensor, low: Tensor, high: Tensor, widest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `_best` gives, of this range, and the squared errors (rows, blocks)."""
    unit = widest.float() / 255
    steps = ((high - low) / (LEVELS * unit)).round().clamp(1, 255)
    zeros = (-low / (steps * unit) * PARTS).round().clamp(0, 255)
    step, zero = (of[..., None] for of in _grid(steps, zeros, widest))
    numbers = _numbers(rows, step, zero)
    return numbers, steps, zeros, ((numbers - zero) * step - rows).square().sum(-1)


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest weight of each block, zero among them."""
    return rows.amin(-1).clamp(max=0), rows.amax(-1).clamp(min=0)


def _grid(steps: Tensor, zeros: Tensor, widest: Tensor) -> tuple[Tensor, Tensor]:
    return steps * (widest.float() / 255), zeros / PARTS


def _numbers(weights: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return (weights / step + zero).round().clamp(0, LEVELS)


def unpack(packed: Tensor, width: int, block: int) -> Tensor:
    """packed: (…, row_bytes) uint8 → (…, width) float32."""
    blocks = width // block
    halves, steps, zeros, widest = packed.split([width // 2, blocks, blocks, 2], -1)
    step = steps * (widest.contiguous().view(torch.bfloat16).float() / 255)  # (…, blocks)
    low = zeros * step / -PARTS
    numbers = torch.cat([halves & 15, halves >> 4], -1).float().unflatten(-1, (blocks, block))
    return numbers.mul_(step[..., None]).add_(low[..., None]).flatten(-2)


class _Product(torch.autograd.Function):
    """`linear` that unpacks the weights once more on the way back, for they take eight times as much unpacked."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, packed: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.block = block
        return linear(states, unpack(packed, states.shape[-1], block).to(states.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        width = (packed.shape[1] - 2) * 2 * ctx.block // (ctx.block + 4)
        return grad @ unpack(packed, width, ctx.block).to(grad.dtype), None, None


def product(states: Tensor, packed: Tensor, block: int) -> Tensor:
    """states (…, width) times a packed matrix (rows, row_bytes), transposed: (…, rows), of the type of the states."""
    return _Product.apply(states, packed, block)
