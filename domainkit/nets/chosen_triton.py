"""What `domainkit.nets.chosen` does, as kernels for a GPU: one program for each token and key head.

Keys and values are read where they lie, a few at a time, under a softmax that is corrected as it goes (Milakov &
Gimelshein 2018, arXiv 1805.02867). The group's queries fill the rows of a product, 16 at least. Sums, shares and
gradients of keys are float32; float32 products are not shortened to tf32.

Not imported where Triton is absent. With TRITON_INTERPRET=1 in the environment before the import it runs on a CPU,
slowly, which is how the tests compare it where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

READ_AT_ONCE = tl.constexpr(32)  # keys


def read(q: Tensor, k: Tensor, v: Tensor, picked: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """As `Chosen.read`."""
    q, k, v, picked, out, sums = (of.contiguous() for of in (q, k, v, picked, out, sums))
    joined, total = torch.empty_like(out), torch.empty_like(sums)
    _read[q.shape[1], q.shape[0]](q, k, v, picked, out, sums, joined, total, *_sizes(q, k, v, picked))
    return joined, total


def read_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, picked: Tensor, out: Tensor,
                  sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `Chosen.read_backward`."""
    given = tuple(of.contiguous() for of in (grad, q, k, v, picked, out, sums))
    moves = q.new_empty(*q.shape[:3], picked.shape[2])
    dq, shares = torch.empty_like(given[1]), torch.empty_like(moves)
    _read_backward[q.shape[1], q.shape[0]](*given, dq, moves, shares, *_sizes(q, k, v, picked))
    return dq, moves, shares


def add(moves: Tensor, shares: Tensor, q: Tensor, grad: Tensor, picked: Tensor, dk: Tensor, dv: Tensor) -> None:
    """As `Chosen.add`."""
    given = tuple(of.contiguous() for of in (moves, shares, q, grad, picked))
    _add[q.shape[1], q.shape[0]](*given, dk, dv, *_sizes(q, dk, dv, picked))


def _sizes(q: Tensor, k: Tensor, v: Tensor, picked: Tensor) -> tuple[int, ...]:
    """tokens, keys, count, group, width, value width, and how many rows and columns a product has for them."""
    real = q.shape[2], q.shape[3], v.shape[2]
    return q.shape[1], k.shape[1], picked.shape[2], *real, *(max(16, triton.next_power_of_2(size)) for size in real)


@triton.jit
def _own(tokens, group: tl.constexpr, width: tl.constexpr, value_width: tl.constexpr,  # type: ignore[no-untyped-def]
         rows: tl.constexpr, columns: tl.constexpr, value_columns: tl.constexpr):  # fmt: skip
    """A program's head and token, and where its sums, its queries and its outputs are, each with what is real."""
    head = tl.program_id(1).to(tl.int64)
    token = head * tokens + tl.program_id(0)
    row, column, value_column = tl.arange(0, rows), tl.arange(0, columns), tl.arange(0, value_columns)
    real = row < group
    at = token * group + row
    asked_at = at[:, None] * width + column[None]
    out_at = at[:, None] * value_width + value_column[None]
    return (head, token, at, real, asked_at, real[:, None] & (column < width)[None],
            out_at, real[:, None] & (value_column < value_width)[None])  # fmt: skip


@triton.jit
def _few(picked, start, head, token, keys, count, width: tl.constexpr,  # type: ignore[no-untyped-def]
         value_width: tl.constexpr, columns: tl.constexpr, value_columns: tl.constexpr):  # fmt: skip
    """Which of a few keys are there, and where they and their values are, each with what is real."""
    column, value_column = tl.arange(0, columns), tl.arange(0, value_columns)
    place = start + tl.arange(0, READ_AT_ONCE)
    there = place < count
    key = head * keys + tl.load(picked + token * count + place, mask=there, other=0)
    k_at = key[:, None] * width + column[None]
    v_at = key[:, None] * value_width + value_column[None]
    return (there, k_at, there[:, None] & (column < width)[None],
            v_at, there[:, None] & (value_column < value_width)[None])  # fmt: skip


@triton.jit
def _read(q, k, v, picked, out, sums, joined, total, tokens, keys, count,  # type: ignore[no-untyped-def]
          group: tl.constexpr, width: tl.constexpr, value_width: tl.constexpr,
          rows: tl.constexpr, columns: tl.constexpr, value_columns: tl.constexpr):  # fmt: skip
    head, token, at, real, asked_at, asked_real, out_at, out_real = _own(
        tokens, group, width, value_width, rows, columns, value_columns
    )
    asked = tl.load(q + asked_at, mask=asked_real, other=0.0)
    found = tl.load(out + out_at, mask=out_real, other=0.0).to(tl.float32)
    most = tl.load(sums + at, mask=real, other=0.0)
    whole = tl.full((rows,), 1.0, tl.float32)
    for start in range(0, count, READ_AT_ONCE):
        there, k_at, k_real, v_at, v_real = _few(
            picked, start, head, token, keys, count, width, value_width, columns, value_columns
        )
        kg, vg = tl.load(k + k_at, mask=k_real, other=0.0), tl.load(v + v_at, mask=v_real, other=0.0)
        scores = tl.where(there[None], tl.dot(asked, tl.trans(kg), input_precision="ieee"), float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp(scores - higher[:, None])
        less = tl.exp(most - higher)
        found = found * less[:, None] + tl.dot(shares.to(vg.dtype), vg, input_precision="ieee")
        whole = whole * less + tl.sum(shares, 1)
        most = higher
    found = found / whole[:, None]
    tl.store(joined + out_at, found.to(joined.dtype.element_ty), mask=out_real)
    tl.store(total + at, most + tl.log(whole), mask=real)


@triton.jit
def _read_backward(grad, q, k, v, picked, out, sums, dq, moves, shares, tokens, keys, count,  # type: ignore[no-untyped-def]
                   group: tl.constexpr, width: tl.constexpr, value_width: tl.constexpr,
                   rows: tl.constexpr, columns: tl.constexpr, value_columns: tl.constexpr):  # fmt: skip
    head, token, at, real, asked_at, asked_real, out_at, out_real = _own(
        tokens, group, width, value_width, rows, columns, value_columns
    )
    asked = tl.load(q + asked_at, mask=asked_real, other=0.0)
    moved = tl.load(grad + out_at, mask=out_real, other=0.0)
    drift = tl.sum(moved.to(tl.float32) * tl.load(out + out_at, mask=out_real, other=0.0).to(tl.float32), 1)
    whole = tl.load(sums + at, mask=real, other=0.0)
    to_q = tl.zeros((rows, columns), tl.float32)
    for start in range(0, count, READ_AT_ONCE):
        there, k_at, k_real, v_at, v_real = _few(
            picked, start, head, token, keys, count, width, value_width, columns, value_columns
        )
        kg, vg = tl.load(k + k_at, mask=k_real, other=0.0), tl.load(v + v_at, mask=v_real, other=0.0)
        scores = tl.dot(asked, tl.trans(kg), input_precision="ieee")
        share = tl.where(there[None] & real[:, None], tl.exp(scores - whole[:, None]), 0.0)
        move = (tl.dot(moved, tl.trans(vg), input_precision="ieee") - drift[:, None]) * share
        move, share = move.to(q.dtype.element_ty), share.to(q.dtype.element_ty)
        to_q += tl.dot(move, kg, input_precision="ieee")
        kept_at = at[:, None] * count + (start + tl.arange(0, READ_AT_ONCE))[None]
        tl.store(moves + kept_at, move, mask=there[None] & real[:, None])
        tl.store(shares + kept_at, share, mask=there[None] & real[:, None])
    tl.store(dq + asked_at, to_q.to(dq.dtype.element_ty), mask=asked_real)


@triton.jit
def _add(moves, shares, q, grad, picked, dk, dv, tokens, keys, count,  # type: ignore[no-untyped-def]
         group: tl.constexpr, width: tl.constexpr, value_width: tl.constexpr,
         rows: tl.constexpr, columns: tl.constexpr, value_columns: tl.constexpr):  # fmt: skip
    head, token, at, real, asked_at, asked_real, out_at, out_real = _own(
        tokens, group, width, value_width, rows, columns, value_columns
    )
    asked = tl.load(q + asked_at, mask=asked_real, other=0.0)
    moved = tl.load(grad + out_at, mask=out_real, other=0.0)
    for start in range(0, count, READ_AT_ONCE):
        there, k_at, k_real, v_at, v_real = _few(
            picked, start, head, token, keys, count, width, value_width, columns, value_columns
        )
        kept_at = at[:, None] * count + (start + tl.arange(0, READ_AT_ONCE))[None]
        move = tl.load(moves + kept_at, mask=there[None] & real[:, None], other=0.0)
        share = tl.load(shares + kept_at, mask=there[None] & real[:, None], other=0.0)
        tl.atomic_add(dk + k_at, tl.dot(tl.trans(move), asked, input_precision="ieee"), mask=k_real)
        tl.atomic_add(dv + v_at, tl.dot(tl.trans(share), moved, input_precision="ieee"), mask=v_real)
