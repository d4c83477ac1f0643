"""What `domainkit.nets.cells` does, as kernels for a CPU. They differ from plain torch in rounding only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from domainkit.nets.cells import UNITS
from domainkit.nets.compiled import LOOSE, kernel

SHORT = np.int32(UNITS)  # in one type with the scores: a wider one would take longer
LOW, HIGH = np.int32(-(2**15)), np.int32(2**15 - 1)


def split(keys: Tensor, directions: Tensor, steps: int) -> Tensor:
    """Of a segment (size, width) float32, split as often as there are directions (splits, width) to begin with: numbers
    of keys (size,), cell after cell."""
    members = torch.arange(len(keys))
    _split(keys.contiguous().numpy(), directions.numpy(), steps, members.numpy())
    return members


def best(scores: Tensor, offset: Tensor, first: int, lowest: Tensor, rounds: Tensor) -> None:
    """`cells._plain` of these cells' products (cells, group, tokens) and offsets (group, tokens), into (bins, tokens)
    each; first: the round in which they begin. After the first cells it goes on with what is known."""
    _best(scores.numpy(), offset.numpy(), first, lowest.numpy(), rounds.numpy())


def take(lowest: Tensor, rounds: Tensor, members: Tensor, found: Tensor) -> None:
    """Of each token the members (cells, keys of a cell) of the cells in the lowest bins, into (tokens, keys): as many
    bins as there is room for; of equal ones the first."""
    _take(lowest.numpy(), rounds.numpy(), members.numpy(), found.numpy())


@kernel(LOOSE)
def _split(keys, directions, steps, members):  # type: ignore[no-untyped-def]
    size, width = keys.shape
    inside, along = np.empty((size, width), np.float32), np.empty(size, np.float32)
    mean, direction, longer = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    room = np.empty(size // 2 + 1, np.int64)
    length = size
    for draw in range(len(directions)):
        for start in range(0, size, length):
            part = members[start : start + length]
            mean[:] = 0
            for place in range(length):
                key = keys[part[place]]
                for column in range(width):
                    inside[place, column] = key[column]
                    mean[column] += key[column]
            for column in range(width):
                mean[column] /= np.float32(length)
            for place in range(length):
                for column in range(width):
                    inside[place, column] -= mean[column]
            direction[:] = directions[draw]
            for _ in range(steps):
                longer[:] = 0
                for place in range(0, length, 2):
                    first, second = _along(inside[place], inside[place + 1], direction)
                    for column in range(width):
                        longer[column] += first * inside[place, column] + second * inside[place + 1, column]
                norm = np.float32(0)
                for column in range(width):
                    norm += longer[column] * longer[column]
                norm = max(np.sqrt(norm), np.float32(1e-12))
                for column in range(width):
                    direction[column] = longer[column] / norm
            for place in range(0, length, 2):
                along[place], along[place + 1] = _along(inside[place], inside[place + 1], direction)
            _halve(part, along[:length], room)
        length //= 2


@kernel(LOOSE)
def _along(one, two, direction):  # type: ignore[no-untyped-def]
    first, second = np.float32(0), np.float32(0)
    for column in range(len(direction)):
        first += one[column] * direction[column]
        second += two[column] * direction[column]
    return first, second


@kernel(set())
def _halve(members, along, room):  # type: ignore[no-untyped-def]
    """The half with the lower numbers first, of equal numbers the first ones; each half in the order they were in."""
    half = len(members) // 2
    order = along.view(np.int32)  # whole numbers in the order of the numbers whose bits they were
    for place in range(len(order)):
        along[place] += np.float32(0)  # -0 is 0
        order[place] ^= (order[place] >> 31) & np.int32(0x7FFFFFFF)
    low, high = np.int64(order.min()), np.int64(order.max())
    while low < high:  # the lowest number that half of them do not exceed, or one that just half do not
        middle = np.int32((low + high) >> 1)
        count = np.int32(0)
        for number in order:
            count += np.int32(number <= middle)
        if count >= half:
            high = np.int64(middle)
        if count <= half:
            low = np.int64(middle) + (count < half)
    equal = half
    for number in order:
        equal -= number < high
    lower = higher = np.int64(0)
    for place in range(len(order)):  # without branches, which nothing could foretell
        member, same = members[place], order[place] == high
        takes = np.int64((order[place] < high) | (same & (equal > 0)))
        equal -= same
        room[higher] = member
        members[lower] = member
        lower += takes
        higher += 1 - takes
    members[half:] = room[:half]


@kernel(set())
def _best(scores, offset, first, lowest, rounds):  # type: ignore[no-untyped-def]
    cells, group, tokens = scores.shape
    bins = len(lowest)
    least, short = np.empty(tokens, np.int32), np.empty(tokens, lowest.dtype)
    number = np.empty(1, rounds.dtype)
    if not first:
        lowest[:] = np.iinfo(lowest.dtype).max
        rounds[:] = 0
    for cell in range(min(bins, cells)):
        low, at = lowest[cell], rounds[cell]
        for other in range(cell, cells, bins):
            number[0] = first + other // bins
            this = number[0]
            for member in range(group):
                of, beside = scores[other, member], offset[member]
                if member:
                    for token in range(tokens):
                        least[token] = min(least[token], np.int32(np.int32(of[token]) + beside[token]))
                else:
                    for token in range(tokens):
                        least[token] = np.int32(np.int32(of[token]) + beside[token])
            for token in range(tokens):
                short[token] = np.int16(min(max(np.int32(least[token] >> SHORT), LOW), HIGH))
            for token in range(tokens):
                at[token] = this if short[token] <= low[token] else at[token]
                low[token] = min(low[token], short[token])


@kernel(set())
def _take(lowest, rounds, members, found):  # type: ignore[no-untyped-def]
    bins, tokens = lowest.shape
    keys = members.shape[1]
    take = found.shape[1] // keys
    bound = _bounds(lowest, take)
    equal, count = np.full(tokens, take), np.zeros(tokens, np.int64)
    for place in range(bins):
        row = lowest[place]
        for token in range(tokens):
            equal[token] -= row[token] < bound[token]
    for place in range(bins):
        row = lowest[place]
        for token in range(tokens):
            if row[token] > bound[token] or (row[token] == bound[token] and not equal[token]):
                continue
            equal[token] -= row[token] == bound[token]
            cell = rounds[place, token] * bins + place
            for key in range(keys):
                found[token, count[token]] = members[cell, key]
                count[token] += 1


@kernel(set())
def _bounds(lowest, take):  # type: ignore[no-untyped-def]
    """For each token the lowest number that `take` of its bins do not exceed: all tokens at once, in one type, since
    a wider one would take longer."""
    bins, tokens = lowest.shape
    low, high, middle, count = np.empty((4, tokens), lowest.dtype)
    low[:], high[:] = np.iinfo(lowest.dtype).min, np.iinfo(lowest.dtype).max
    for _ in range(8 * lowest.itemsize):
        for token in range(tokens):
            middle[token] = (low[token] & high[token]) + ((low[token] ^ high[token]) >> 1)
        count[:] = 0
        for place in range(bins):
            row = lowest[place]
            for token in range(tokens):
                count[token] += row[token] <= middle[token]
        for token in range(tokens):
            enough = count[token] >= take
            high[token] = middle[token] if enough else high[token]
            low[token] = low[token] if enough else middle[token] + 1
    return high
