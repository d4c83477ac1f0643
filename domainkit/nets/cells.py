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
AT_ONCE = 3 * 2**19  # scores on a CPU: few enough to stay near a core
WHOLE = {2: torch.int16, 4: torch.int32}  # by bytes


def split(segments: Tensor, cell: int) -> Tensor:
    """Splits (segments, size, width) float32 in halves, and those again: (segments * size / cell, cell), numbers of
    keys, in their order within a cell."""
    _, size, width = segments.shape
    draw = torch.Generator().manual_seed(0)
    draws = [torch.randn(width, 1, generator=draw)[:, 0] for _ in range(int(log2(size // cell)))]
    if segments.device.type != "cpu" or not draws:
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


def best(asked: Tensor, means: Tensor, members: Tensor, take: int, room: Room) -> Tensor:
    """The keys of the cells that any of the group scores highest, nearly: of each bin of cells at most one.

    asked: (key heads, tokens, group, width), means: (key heads, cells, width); the lower their product, the better.
    members: (key heads, cells, keys of a cell) → (key heads, tokens, take * keys of a cell), take < cells.

    What is compared are the scores' bits as whole numbers, which order them as the scores do where these are positive,
    and put those below 0, the best, first.
    """
    bins = BINS * max(take, 1) + SHIFT
    if asked.device.type == "cpu":
        return _kernel(asked, means, members, take, bins, room)
    lowest, rounds = _plain(asked, means, bins)
    chosen = lowest.topk(take, 2, largest=False, sorted=False).indices
    heads = torch.arange(len(members), device=members.device)[:, None, None]
    return members[heads, rounds.gather(2, chosen) * bins + chosen].flatten(2)


def _kernel(asked: Tensor, means: Tensor, members: Tensor, take: int, bins: int, room: Room) -> Tensor:
    """As `best`. The tokens lie side by side: the product is faster with its long side first, and what follows takes
    many of them at once."""
    from domainkit.nets import cells_numba

    heads, tokens, group, width = asked.shape
    whole, pieces = WHOLE[asked.element_size()], -(-tokens * group * means.shape[1] // AT_ONCE)
    few = -(-means.shape[1] // (pieces * bins)) * bins
    found = members.new_empty(heads, tokens, take * members.shape[2])
    for q, mean, member, into in zip(asked.transpose(1, 2), means, members, found, strict=True):
        q = q.reshape(-1, width).T
        lowest, rounds = (torch.empty(bins, tokens, dtype=whole) for _ in "ab")  # int16: of ten million tokens
        for first in range(0, len(mean), few):
            part = mean[first : first + few]
            scores = room.of(asked, (len(part), group, tokens))
            torch.mm(part, q, out=scores.flatten(1))
            cells_numba.best(scores.view(whole), first // bins, lowest, rounds)
        cells_numba.take(lowest, rounds, member, into)
    return found


def _plain(asked: Tensor, means: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Of each bin the lowest score of any of the group, as a whole number, and in which round of the bins it stands,
    the last of equal ones: (key heads, tokens, bins) each. Cell c is in bin c % bins."""
    scores = torch.bmm(asked.flatten(1, 2), means.mT)
    bits = scores.view(WHOLE[scores.element_size()]).unflatten(1, asked.shape[1:3]).amin(2)
    bits = pad(bits, (0, -bits.shape[2] % bins), value=torch.iinfo(bits.dtype).max).unflatten(2, (-1, bins))
    lowest = bits.amin(2)
    number = torch.arange(bits.shape[2], dtype=torch.int32, device=bits.device)[:, None]
    return lowest, torch.where(bits == lowest[:, :, None], number, 0).amax(2)
