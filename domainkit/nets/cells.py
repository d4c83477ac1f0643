"""Cells of keys that are alike: how a segment is split into them, and which of them a token takes.

On a CPU kernels in Numba do both (`domainkit.nets.cells_numba`): a segment while it is in a core's cache, the scores of
many cells in one pass. Elsewhere this is plain torch.
"""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from domainkit.nets.chosen import Room
from domainkit.nets.threads import in_turn

STEPS = 2  # of the power iteration that finds a direction; more find no better cells
BINS = 8  # for each cell to take; of a bin one cell at most is taken (Chern et al. 2022, arXiv 2206.14286)
SHIFT = 13  # more bins than that, so that cells of one place in their segments do not share a bin
AT_ONCE = 2**18  # scores on a CPU: few enough to stay near a core
UNITS = 5  # bits of a score that are dropped, so that the others fit 16
PRODUCTS = {torch.int8: (torch._int_mm, torch.int32), torch.float32: (torch.mm, torch.float32)}  # on a CPU; of what


def split(segments: Tensor, cell: int) -> Tensor:
    """Splits (segments, size, width) float32 in halves, and those again: (segments * size / cell, cell), numbers of
    keys, in their order within a cell. Where a cell holds one key nothing is split."""
    count, size, width = segments.shape
    if cell == 1:
        return torch.arange(count * size, device=segments.device)[:, None]
    draw = torch.Generator().manual_seed(0)
    draws = [torch.randn(width, 1, generator=draw)[:, 0] for _ in range(int(log2(size // cell)))]
    if segments.device.type != "cpu":
        return _split(segments, draws)
    from domainkit.nets import cells_numba

    directions = torch.stack(draws)
    parts = in_turn(lambda of: cells_numba.split(of, directions, STEPS), list(segments), segments.device)
    found = [part.view(-1, cell) + number * size for number, part in enumerate(parts)]
    return torch.cat(found) if found else torch.empty(0, cell, dtype=torch.long)


def _split(segments: Tensor, draws: list[Tensor]) -> Tensor:
    count, size, width = segments.shape
    keys = segments.flatten(0, 1)
    members = torch.arange(count * size, device=keys.device).view(count, size)
    for start in draws:
        inside = keys.index_select(0, members.flatten()).view(*members.shape, width)
        inside = inside - inside.mean(1, keepdim=True)
        direction = start[:, None].to(keys.device).expand(len(members), -1, -1)
        for _ in range(STEPS):
            direction = normalize(inside.transpose(1, 2) @ (inside @ direction), dim=1)
        order = (inside @ direction)[..., 0].argsort(dim=1, stable=True)
        members = members.gather(1, order).view(-1, members.shape[1] // 2)
    return members.sort(1).values


def best(asked: Tensor, offset: Tensor, means: Tensor, members: Tensor, take: int, room: Room) -> Tensor:
    """The keys of the cells that any of the group scores highest, nearly: of each bin of cells at most one.

    asked: (key heads, group, tokens, width), offset: (key heads, group, tokens), means: (key heads, cells, width), all
    whole numbers (`domainkit.nets.grid`): the lower product and offset together, the better.
    members: (key heads, cells, keys of a cell) → (key heads, tokens, take * keys of a cell), take < cells.
    """
    bins = BINS * max(take, 1) + SHIFT
    if asked.device.type == "cpu":
        return _kernel(asked, offset, means, members, take, bins, room)
    lowest, rounds = _plain(asked, offset, means, bins)
    chosen = lowest.topk(take, 2, largest=False, sorted=False).indices
    heads = torch.arange(len(members), device=members.device)[:, None, None]
    return members[heads, rounds.gather(2, chosen) * bins + chosen].flatten(2)


def _kernel(asked: Tensor, offset: Tensor, means: Tensor, members: Tensor, take: int, bins: int,
            room: Room) -> Tensor:  # fmt: skip
    """As `best`. The tokens lie side by side: the product is faster with its long side first, and what follows takes
    many of them at once."""
    from domainkit.nets import cells_numba

    heads, group, tokens, width = asked.shape
    (multiply, dtype), pieces = PRODUCTS[asked.dtype], -(-tokens * group * means.shape[1] // AT_ONCE)
    few = -(-means.shape[1] // (pieces * bins)) * bins
    found = members.new_empty(heads, tokens, take * members.shape[2])
    for q, beside, mean, member, into in zip(asked, offset, means, members, found, strict=True):
        q = q.reshape(-1, width).T
        lowest, rounds = (torch.empty(bins, tokens, dtype=torch.int16) for _ in "ab")  # of ten million tokens
        for first in range(0, len(mean), few):
            part = mean[first : first + few]
            scores = room.of(dtype, (len(part), group, tokens))
            multiply(part, q, out=scores.flatten(1))
            cells_numba.best(scores, beside, first // bins, lowest, rounds)
        cells_numba.take(lowest, rounds, member, into)
    return found


def _plain(asked: Tensor, offset: Tensor, means: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Of each bin the lowest score of any of the group, and in which round of the bins it stands, the last of equal
    ones: (key heads, tokens, bins) each. Cell c is in bin c % bins."""
    scores = torch.bmm(asked.flatten(1, 2), means.mT).float().unflatten(1, asked.shape[1:3]) + offset[..., None]
    scores = (scores.amin(1).int() >> UNITS).clamp(-(2**15), 2**15 - 1)
    scores = pad(scores, (0, -scores.shape[2] % bins), value=2**15).unflatten(2, (-1, bins))
    lowest = scores.amin(2)
    number = torch.arange(scores.shape[2], dtype=torch.int32, device=scores.device)[:, None]
    return lowest, torch.where(scores == lowest[:, :, None], number, 0).amax(2)
