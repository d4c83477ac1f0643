"""What `domainkit.nets.chosen` does, as kernels for a CPU, in float32: keys are read where they lie.

They differ from plain torch in rounding only. The backward pass is in two: the second adds to the gradients of the keys
in the order of the tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from domainkit.nets.compiled import LOOSE, kernel


def read(q: Tensor, k: Tensor, v: Tensor, picked: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """As `Chosen.read`; float32."""
    q, k, v, picked, out, sums = (of.contiguous() for of in (q, k, v, picked, out, sums))
    joined, total = torch.empty_like(out), torch.empty_like(sums)
    _read(*(of.numpy() for of in (q, k, v, picked, out, sums, joined, total)))
    return joined, total


def read_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, picked: Tensor, out: Tensor,
                  sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `Chosen.read_backward`; float32."""
    given = [of.contiguous() for of in (grad, q, k, v, picked, out, sums)]
    moves = q.new_empty(*q.shape[:3], picked.shape[2])
    shares, dq = torch.empty_like(moves), torch.empty_like(given[1])
    _read_backward(*(of.numpy() for of in (*given, dq, moves, shares)))
    return dq, moves, shares


def add(moves: Tensor, shares: Tensor, q: Tensor, grad: Tensor, picked: Tensor, dk: Tensor, dv: Tensor) -> None:
    """As `Chosen.add`; float32."""
    given = (of.contiguous().numpy() for of in (moves, shares, q, grad, picked))
    _add(*given, dk.numpy(), dv.numpy())


@kernel(LOOSE)
def _read(q, k, v, picked, out, sums, joined, total):  # type: ignore[no-untyped-def]
    heads, tokens, group, width = q.shape
    count, value_width = picked.shape[2], v.shape[2]
    shares = np.empty((group, count), np.float32)
    powers = np.empty(group * count, np.int32)
    for head in range(heads):
        for token in range(tokens):
            most = total[head, token]
            most[:] = sums[head, token]
            for place in range(count):
                key = picked[head, token, place]
                for member in range(group):
                    score = np.float32(0)
                    for column in range(width):
                        score += q[head, token, member, column] * k[head, key, column]
                    shares[member, place] = score
                    most[member] = max(most[member], score)
            for member in range(group):
                for place in range(count):
                    shares[member, place] -= most[member]
            _exp(shares.reshape(-1), powers)
            for member in range(group):
                beside = np.exp(sums[head, token, member] - most[member])
                whole = beside
                for place in range(count):
                    whole += shares[member, place]
                most[member] += np.log(whole)
                for place in range(count):
                    shares[member, place] /= whole
                for column in range(value_width):
                    joined[head, token, member, column] = out[head, token, member, column] * (beside / whole)
            for place in range(count):
                key = picked[head, token, place]
                for member in range(group):
                    for column in range(value_width):
                        joined[head, token, member, column] += shares[member, place] * v[head, key, column]


@kernel(LOOSE)
def _read_backward(grad, q, k, v, picked, out, sums, dq, moves, shares):  # type: ignore[no-untyped-def]
    heads, tokens, group, width = q.shape
    count, value_width = picked.shape[2], v.shape[2]
    powers = np.empty(group * count, np.int32)
    for head in range(heads):
        for token in range(tokens):
            share, move = shares[head, token], moves[head, token]
            for member in range(group):
                drift = np.float32(0)
                for column in range(value_width):
                    drift += grad[head, token, member, column] * out[head, token, member, column]
                for place in range(count):
                    move[member, place] = -drift
            for place in range(count):
                key = picked[head, token, place]
                for member in range(group):
                    score, gain = np.float32(0), np.float32(0)
                    for column in range(width):
                        score += q[head, token, member, column] * k[head, key, column]
                    for column in range(value_width):
                        gain += grad[head, token, member, column] * v[head, key, column]
                    share[member, place] = score - sums[head, token, member]
                    move[member, place] += gain
            _exp(share.reshape(-1), powers)
            for member in range(group):
                for place in range(count):
                    move[member, place] *= share[member, place]
            dq[head, token] = 0
            for place in range(count):
                key = picked[head, token, place]
                for member in range(group):
                    for column in range(width):
                        dq[head, token, member, column] += move[member, place] * k[head, key, column]


@kernel(LOOSE)
def _add(moves, shares, q, grad, picked, dk, dv):  # type: ignore[no-untyped-def]
    heads, tokens, group, width = q.shape
    count, value_width = picked.shape[2], dv.shape[2]
    for head in range(heads):
        for token in range(tokens):
            for place in range(count):
                key = picked[head, token, place]
                for member in range(group):
                    move, share = moves[head, token, member, place], shares[head, token, member, place]
                    for column in range(width):
                        dk[head, key, column] += move * q[head, token, member, column]
                    for column in range(value_width):
                        dv[head, key, column] += share * grad[head, token, member, column]


LEAST, LOG2E = np.float32(-87), np.float32(1.44269504)  # below e^LEAST there is next to nothing
LN2, LN2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
ROUND = np.float32(1.5 * 2**23)  # a sum with it has no place for a fraction
S2, S3, S4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
S5, S6, S7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
ONE = np.float32(1)


@kernel({"contract"})  # what ROUND adds and takes must not cancel
def _exp(of, powers):  # type: ignore[no-untyped-def]
    """In place, many at once, of numbers up to 0: as Cephes' expf, wrong by 1e-7 of it at most."""
    for place in range(of.size):
        number = max(of[place], LEAST)
        whole = (number * LOG2E + ROUND) - ROUND
        rest = number - whole * LN2 - whole * LN2_REST
        of[place] = (((((S7 * rest + S6) * rest + S5) * rest + S4) * rest + S3) * rest + S2) * rest * rest + rest + ONE
        powers[place] = np.int32(whole)
    bits = of.view(np.int32)
    for place in range(of.size):
        bits[place] += powers[place] << 23
