"""What `domainkit.nets.cells` does, as kernels for a CPU. They differ from plain torch in rounding only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from domainkit.nets.compiled import LOOSE, kernel

BITS = 16  # of the number of a round


def split(keys: Tensor, directions: Tensor, steps: int) -> Tensor:
    """Of a segment (size, width) float32, split as often as there are directions (splits, width) to begin with: numbers
    of keys (size,), cell after cell."""
    members = torch.arange(len(keys))
    _split(keys.contiguous().numpy(), directions.numpy(), steps, members.numpy())
    return members


def best(bits: Tensor, lowest: Tensor, rounds: Tensor) -> None:
    """As `cells._plain`, of scores' bits (tokens, group, cells), which are overwritten: into (tokens, bins) each."""
    ranks = torch.empty(bits.shape[2], dtype=torch.int32 if bits.dtype == torch.int16 else torch.int64)
    _best(bits.numpy(), ranks.numpy(), lowest.numpy(), rounds.numpy())


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
def _best(bits, ranks, lowest, rounds):  # type: ignore[no-untyped-def]
    tokens, group, cells = bits.shape
    bins = lowest.shape[1]
    later = np.empty(cells, ranks.dtype)
    for cell in range(cells):
        later[cell] = (1 << BITS) - 1 - cell // bins
    lowest[:] = np.iinfo(lowest.dtype).max
    rounds[:] = 0
    for token in range(tokens):
        row = bits[token, 0]
        for member in range(1, group):
            other = bits[token, member]
            for cell in range(cells):
                row[cell] = min(row[cell], other[cell])
        for cell in range(cells):  # in one number with the round
            ranks[cell] = (row[cell] << BITS) + later[cell]
        length, deep = cells, -(-cells // bins)
        while deep > 1:  # the later half of the rounds onto the earlier one: long loops, many numbers at once
            deep = (deep + 1) // 2
            half = ranks[deep * bins : length]
            for cell in range(len(half)):
                ranks[cell] = min(ranks[cell], half[cell])
            length = deep * bins
        for place in range(min(bins, cells)):
            lowest[token, place] = ranks[place] >> BITS
            rounds[token, place] = ~ranks[place] & ((1 << BITS) - 1)
