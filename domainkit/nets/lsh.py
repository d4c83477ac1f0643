"""LSH attention: causal attention in near-linear time for decoders that were trained with dense attention.

Every query reads exactly, under one softmax,

- the first SINKS tokens, where trained models look when they look at nothing (StreamingLLM, Xiao et al. 2023, arXiv
  2309.17453),
- its own block of BLOCK tokens so far, and the WINDOW before that,
- of all that lies further back, the `keys` tokens that it most likely attends to,

and the rest in the mean: of parts of keys that are alike one key and one value, which count as often as the part has
keys (Multipole Attention, Hooper et al. 2025, arXiv 2506.13059).

The `keys` are found by hashing. Queries and keys of a pretrained decoder lie apart and have lengths, so one hash for
both (Reformer, Kitaev et al. 2020, arXiv 2001.04451; HyperAttention, Han et al. 2023, arXiv 2310.05869) does not bring
them together; here only keys are hashed, and a query is compared with what a bucket holds on average (Squeezed
Attention, Hooper et al. 2024, arXiv 2411.09688):

1. Complete segments of keys are hashed into cells: split in halves at the median along their leading principal
   direction, each half again along its own. All cells of a segment are equally full, so every shape is regular.
   Neighbours in this order of halves are alike, so many of them are a part. O(n log n).
2. A small segment is hashed as soon as it is complete, and its keys once more when the larger one around it is, as in a
   log-structured merge tree: the larger a segment, the purer its cells. A query finds each key in one of them. The
   smallest segments are not split, each key is a cell; the largest have large cells. O(n log n) for each of SEGMENTS.
3. A query scores the mean of each cell's keys, in whole numbers of 8 bits (`domainkit.nets.grid`), and takes the best
   cells of each size of segment; the query heads of one key head take the same ones, by the largest share that any of
   them would give. n times the number of cells, in products of short vectors: of its cost this is the part that is not
   linear.
4. One softmax over all of it: means of parts, sinks and window by the dense kernel, which tells the sum of its
   softmax, and the chosen keys beside it. A mean counts for as many keys as are not chosen, but less by what keys tell
   of values (`_untold`): where like keys have like values, as in the first layer, which sees tokens and no more, the
   values of what is not chosen are those of what is. The backward pass keeps the choice, the counts and the log of the
   whole sum, and reads again.

Strictly causal, choice and means included: they are of segments that end before the query's window, so a later token
changes no bit of an earlier output. No tensor has n x n elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from domainkit.nets.cells import PRODUCTS, best, split
from domainkit.nets.chosen import Chosen, Room
from domainkit.nets.dense import dense, dense_backward
from domainkit.nets.grid import LEAST, Grid
from domainkit.nets.threads import in_turn

SINKS = 16
BLOCK = 256
WINDOW = 2 * BLOCK
# keys of a segment, of its cells, of its parts; each segment is within one of the former size
SEGMENTS = (32 * BLOCK, 16, 4 * BLOCK), (8 * BLOCK, 2, BLOCK), (BLOCK, 1, BLOCK)
PAIRS = 1  # the size of segment whose cells are pairs
EVEN = 16  # keys: the dense kernel is faster with a multiple
KEYS = 80
TOGETHER = 4  # key heads that are worked on at once


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, *, keys: int = KEYS, documents: Tensor | None = None,
           scored_in: torch.dtype = torch.float32, index: Index | None = None) -> Tensor:  # fmt: skip
    """Attention of q to k: (batch, heads, queries, value width), differentiable in q, k and v.

    q: (batch, heads, queries, width), of the last queries of the tokens; k: (batch, key heads, tokens, width); v:
    (batch, key heads, tokens, value width). heads is a multiple of key heads; the widths may differ.
    keys: how many a query reads besides sinks and blocks; when they are all, this is dense attention.
    documents: (batch, tokens), a number for each; a token reads its own document only, which is one stretch of tokens.
    Below 0 is padding: nothing reads it, and its output is 0. None: a row is a document.
    scored_in: in what the whole numbers of step 3 are multiplied, on a CPU float32 or, which is as good, int8.
    index: of a text that grows, without documents: what earlier calls hashed is not hashed again.

    Raises ValueError: shapes that do not fit, a dtype that is not for this, keys or values that are not finite.
    """
    if k.device.type == "cpu" and scored_in not in PRODUCTS:
        raise ValueError(f"a CPU does not score cells in {scored_in}: one of {', '.join(map(str, PRODUCTS))} is needed")
    _check(q, k, v, whole=index is None)
    if index is not None:
        index.follow(k, q.shape[2])
    rows = [_runs(row) for row in documents] if documents is not None else [[(0, k.shape[2], True)]] * len(q)
    first = k.shape[2] - q.shape[2]
    outs = []
    for row, runs in enumerate(rows):
        parts = []
        for start, end, real in runs:
            asked = q[row, :, max(start - first, 0) : max(end - first, 0)]
            if not real:
                parts.append(asked.new_zeros(*asked.shape[:2], v.shape[3]))
            elif asked.shape[1]:
                known = index.cells[row] if index is not None and documents is None else {}
                of = k[row, :, start:end], v[row, :, start:end]
                parts.append(_document(asked, *of, scale, keys, scored_in, known))
        outs.append(_joined(parts or [q.new_zeros(q.shape[1], 0, v.shape[3])], 1))
    return torch.stack(outs) if len(outs) > 1 else outs[0][None]


def _check(q: Tensor, k: Tensor, v: Tensor, *, whole: bool) -> None:
    fits = k.shape[:3] == v.shape[:3] and len(q) == len(k) and q.shape[3] == k.shape[3]
    if not fits or q.shape[1] % k.shape[1] or q.shape[2] > k.shape[2]:
        raise ValueError(f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype):
        raise ValueError(f"queries are {q.dtype}, keys {k.dtype}, values {v.dtype}: one floating-point type is needed")
    first = 0 if whole else k.shape[2] - q.shape[2]  # an index saw the others
    for name, of in (("key", k.detach()[:, :, first:]), ("value", v.detach()[:, :, first:])):
        if not isfinite(float(of.sum())) and not bool(torch.isfinite(of).all()):  # the sum takes one pass
            row, head, token = (~torch.isfinite(of).all(-1)).nonzero()[0].tolist()
            raise ValueError(f"the {name} of token {first + token}, head {head}, row {row} is not finite")


def _runs(documents: Tensor) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is no padding) of each stretch of one number."""
    numbers, counts = documents.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [(end - count, end, number >= 0)
            for number, count, end in zip(numbers.tolist(), counts.tolist(), ends, strict=True)]  # fmt: skip


def _document(q: Tensor, k: Tensor, v: Tensor, scale: float, keys: int, scored_in: torch.dtype,
              known: dict[int, Cells]) -> Tensor:  # fmt: skip
    """(heads, queries, width) of one document, its keys (key heads, tokens, width). known: by first key head; extended
    here."""
    group, outs = len(q) // len(k), []
    for head in range(0, len(k), TOGETHER):
        key, value = k[head : head + TOGETHER], v[head : head + TOGETHER]
        if keys and k.shape[1] >= SINKS + BLOCK:
            known[head] = hashed(key.detach(), value.detach(), scored_in, known.get(head))
        asked = q[head * group : (head + len(key)) * group].unflatten(0, (len(key), group)).transpose(1, 2)
        out = _Attention.apply(asked, key, value, scale, known.get(head), keys)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return _joined(outs, 0)


def _joined(parts: list[Tensor], along: int) -> Tensor:
    return torch.cat(parts, along) if len(parts) > 1 else parts[0]


class Index:
    """The cells of a text that grows, as a key-value cache does: of each row and each key head.

    It says where to look, and the means: the keys and values that are read one by one are always those of the call.
    """

    def __init__(self) -> None:
        self.cells: list[dict[int, Cells]] = []
        self._seen = torch.empty(0)  # (rows, key heads, some tokens, width)

    def follow(self, k: Tensor, queries: int) -> None:
        """Keep what is known if k goes on where the last call ended, else begin anew."""
        before = k.shape[2] - queries
        same = self._sample(k[:, :, :before])
        if not before or same.shape != self._seen.shape or not torch.equal(same, self._seen):
            self.cells = [{} for _ in k]
        self._seen = self._sample(k).clone()

    @staticmethod
    def _sample(k: Tensor) -> Tensor:
        """A few of the keys, the last among them; which ones depends on how many there are."""
        return k.detach()[:, :, torch.linspace(0, k.shape[2] - 1, min(k.shape[2], 33)).long()]


@dataclass(frozen=True)
class Level:
    """Where the keys of all complete segments of one size are found."""

    members: Tensor  # (key heads, cells, keys of a cell) int64: their positions
    means: Tensor  # (key heads, cells, width), on the grid
    keys: Tensor  # (key heads, parts, width): of so many cells that follow one another the mean of their keys
    values: Tensor  # (key heads, parts, value width): and of their values


@dataclass(frozen=True)
class Cells:
    """A level for each of SEGMENTS."""

    levels: Sequence[Level]
    grid: Grid
    untold: Tensor  # (key heads, 1), see `_untold`; of the first segment of pairs, so that no later token has a say


@torch.no_grad()
def hashed(keys: Tensor, values: Tensor, scored_in: torch.dtype, known: Cells | None = None) -> Cells:
    """keys: (key heads, tokens, width), a block at least; values: (key heads, tokens, value width). The first SINKS
    tokens are in no cell.

    known: the cells of the first of these keys, which are taken over.
    """
    grid = known.grid if known else Grid.over(keys[:, SINKS : SINKS + BLOCK], scored_in)
    rest, levels = keys[:, SINKS:], list[Level]()
    for number, (size, cell, part) in enumerate(SEGMENTS):
        old = known.levels[number] if known else None
        done = old.members[0].numel() if old else 0
        end = rest.shape[1] // size * size
        if old and end == done:
            levels.append(old)
            continue
        new = rest[:, done:end].float()  # (key heads, tokens, width)
        cells = split(new.reshape(-1, size, rest.shape[2]), cell)
        means = _means(cells, new)
        members = cells.unflatten(0, (len(keys), -1)) - _first(keys, end - done)[..., None] + SINKS + done
        beside = _means(cells.reshape(-1, part), values[:, SINKS + done : SINKS + end].float())
        level = Level(members, grid.means(means), means.unflatten(1, (-1, part // cell)).mean(2), beside)
        if old:
            level = Level(*(torch.cat(of, 1) for of in zip(vars(old).values(), vars(level).values(), strict=True)))
        levels.append(level)
    if known and known.levels[PAIRS].members.shape[1]:
        return Cells(levels, grid, known.untold)
    size, cell, _ = SEGMENTS[PAIRS]
    pairs = levels[PAIRS].members[:, : size // cell] - SINKS
    return Cells(levels, grid, _untold(values[:, SINKS : SINKS + size].float(), pairs))


def _untold(values: Tensor, pairs: Tensor) -> Tensor:
    """(key heads, 1): log of the share of the variance of values that keys do not tell: half the square of the
    difference within pairs of keys that are alike, beside the variance of all.

    values: (key heads, tokens, value width); pairs: (key heads, pairs, 2), none if there are too few tokens.
    """
    if not pairs.shape[1]:
        return values.new_zeros(len(values), 1)
    first, second = (values.gather(1, of[..., None].expand(-1, -1, values.shape[2])) for of in pairs.unbind(2))
    apart = (first - second).square().sum(2).mean(1) / 2
    return ((apart + LEAST) / (values.var(1).sum(1) + LEAST)).clamp(max=1).log()[:, None]


def _means(members: Tensor, of: Tensor) -> Tensor:
    """(key heads, groups, width): of the members (groups of all heads, size) of each group in `of` (key heads, tokens,
    width)."""
    return embedding_bag(members, of.flatten(0, 1), mode="mean").unflatten(0, (len(of), -1))


def _first(of: Tensor, size: int) -> Tensor:
    """Where each head begins when heads of this size follow one another: (heads, 1)."""
    return torch.arange(len(of), device=of.device)[:, None] * size


def _before(position: int) -> list[tuple[int, slice]]:
    """(level, which of its cells), the largest segments first, that hold each key from SINKS to `position` once."""
    found, done, end = [], 0, position - SINKS
    for level, (size, cell, _) in enumerate(SEGMENTS):
        reach = end // size * size
        if reach > done:
            found.append((level, slice(done // cell, reach // cell)))
            done = reach
    return found


@dataclass(frozen=True)
class Share:
    """What a query reads of the segments of one size."""

    level: int
    cells: slice  # of the level's, those that stand for these keys
    take: int  # of them it chooses so many

    @property
    def left(self) -> int:
        """Cells that are not chosen; if there are none, nothing is read in the mean."""
        return self.cells.stop - self.cells.start - self.take

    @property
    def parts(self) -> slice:
        """Where, of the level's, the parts are that are read in the mean."""
        _, cell, part = SEGMENTS[self.level]
        return slice(self.cells.start * cell // part, self.cells.stop * cell // part) if self.left else slice(0, 0)

    @property
    def weights(self) -> list[float]:
        """Of each of these parts, log of how many of its keys are not chosen."""
        many = self.parts.stop - self.parts.start
        return [log(self.left * SEGMENTS[self.level][1] / many)] * many if many else []


def _shares(position: int, keys: int) -> list[Share]:
    """Of all that lies before `position`. `keys` are dealt by the square root of how many there are of each size; what
    the smallest segments do not need, the others take."""
    parts, found = _before(position), list[Share]()
    roots = [sqrt((cells.stop - cells.start) * SEGMENTS[level][1]) for level, cells in parts]
    while parts:
        level, cells = parts.pop()
        cell, share = SEGMENTS[level][1], roots[-1] / sum(roots)
        roots.pop()
        found.append(Share(level, cells, min(int(keys * share) // cell, cells.stop - cells.start)))
        keys -= found[-1].take * cell
    return found


def _choose(q: Tensor, lse: Tensor, known: Cells, shares: Sequence[Share], room: Room) -> Tensor:
    """The keys that each query reads: (key heads, tokens, count).

    q: (key heads, tokens, group, width), scaled; lse: (key heads, tokens, group) of what is read anyway.
    """
    asked, found = known.grid.asked(q, lse), []
    for share in shares:
        level = known.levels[share.level]
        members, means = level.members[:, share.cells], level.means[:, share.cells]
        if share.left:
            found.append(best(*asked, means, members, share.take, room))
        else:
            found.append(members.flatten(1)[:, None].expand(-1, q.shape[1], -1))
    return torch.cat(found, 2)


class _Attention(torch.autograd.Function):
    """q: (key heads, queries, group, width), k: (key heads, tokens, width), v: (key heads, tokens, value width) →
    (key heads, queries, group, value width)"""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, known: Cells | None, keys: int) -> Tensor:
        first = k.shape[1] - q.shape[1]
        heads, queries, group, _ = q.shape
        out = q.new_empty(heads, group, queries, v.shape[2]).transpose(1, 2)  # in the order in which it is returned
        lse = q.new_empty(heads, queries, group, dtype=torch.float32)
        chosen, room = Chosen(k, v), Room()

        def work(tile: Tile) -> Tensor:
            rows = slice(tile.start - first, tile.end - first)
            asked, picked = (q[:, rows] * scale).contiguous(), torch.empty(0)
            got, sums = dense(asked, *_read(k, v, known, tile))
            if known and tile.shares:
                picked = _choose(asked, sums, known, tile.shares, room)
                got, sums = chosen.read(asked, picked, got, sums)
            out[:, rows], lse[:, rows] = got, sums
            return picked

        ctx.save_for_backward(q, k, v, out, lse, *in_turn(work, list(_tiles(first, k.shape[1], keys)), q.device))
        ctx.scale, ctx.known, ctx.keys = scale, known, keys
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By the sums that the forward pass kept. The gradients of keys and values are added up in the tiles' order."""
        q, k, v, out, lse, *picks = ctx.saved_tensors
        first, chosen, dq = k.shape[1] - q.shape[1], Chosen(k, v), torch.empty_like(q)
        levels = _levels(ctx.known)
        dk, dv = _Sum(k, [level.keys for level in levels]), _Sum(v, [level.values for level in levels])

        def work(item: tuple[Tile, Tensor]) -> tuple[Tensor, ...]:
            tile, picked = item
            rows = slice(tile.start - first, tile.end - first)
            asked, g = (q[:, rows] * ctx.scale).contiguous(), grad[:, rows].contiguous()
            known = out[:, rows], lse[:, rows]
            to_q, to_k, to_v = dense_backward(g, asked, *_read(k, v, ctx.known, tile), *known)
            far: tuple[Tensor, ...] = ()
            if picked.numel():
                far_q, *kept = chosen.read_backward(g, asked, picked, *known)
                to_q, far = to_q + far_q, (*kept, asked, g)
            dq[:, rows] = to_q * ctx.scale
            return to_k, to_v, *far

        tiles = list(zip(_tiles(first, k.shape[1], ctx.keys), picks, strict=True))
        for (tile, picked), (to_k, to_v, *far) in zip(tiles, in_turn(work, tiles, q.device), strict=True):
            dk.add(to_k, tile)
            dv.add(to_v, tile)
            if far:
                moves, shares, asked, g = far
                chosen.add(moves, shares, asked, g, picked, dk.whole, dv.whole)
        for of in (dk, dv):
            of.spread([level.members for level in levels])
        return dq, dk.whole.to(k.dtype), dv.whole.to(v.dtype), None, None, None


class _Sum:
    """The gradient of keys, or of values: what is added up of it, and of the means; float32."""

    def __init__(self, of: Tensor, means: list[Tensor]) -> None:
        self.whole = torch.zeros(of.shape, device=of.device)
        self._means = [torch.zeros_like(mean) for mean in means]

    def add(self, what: Tensor, tile: Tile) -> None:
        """what: the gradient of what `_read` gives."""
        for share in tile.shares:
            some = self._means[share.level][:, share.parts]
            some += what[:, : some.shape[1]]
            what = what[:, some.shape[1] :]
        for some in reversed((tile.sinks, tile.near)):
            part = self.whole[:, some]
            part += what[:, what.shape[1] - part.shape[1] :]
            what = what[:, : what.shape[1] - part.shape[1]]

    def spread(self, members: list[Tensor]) -> None:
        """Of each mean to the keys that it is of. members: of each level."""
        for (_, _, part), where, means in zip(SEGMENTS, members, self._means, strict=False):
            each = (means / part).repeat_interleave(part, 1)
            self.whole.scatter_add_(1, where.reshape(len(where), -1, 1).expand_as(each), each)


@dataclass(frozen=True)
class Tile:
    """The queries from `start` to `end`, all of one block, and what they read."""

    start: int
    end: int
    sinks: slice
    near: slice  # the block, and the window before it
    shares: Sequence[Share]  # of what lies before that


def _tiles(first: int, tokens: int, keys: int) -> Iterator[Tile]:
    start = first
    while start < tokens:
        block = SINKS + max(start - SINKS, 0) // BLOCK * BLOCK
        end, near = min(block + BLOCK, tokens), max(block - WINDOW, SINKS)
        yield Tile(start, end, slice(0, min(SINKS, end)), slice(near, end), _shares(near, keys) if keys else ())
        start = block + BLOCK


def _levels(known: Cells | None) -> Sequence[Level]:
    return known.levels if known else ()


def _read(k: Tensor, v: Tensor, known: Cells | None, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values that a whole tile reads: the means, nothing up to a multiple of EVEN, the sinks, and what is
    near; and what is added to the scores of those that are further back, (key heads, some)."""
    weights = [weight for share in tile.shares for weight in share.weights]
    blank = -len(weights) % EVEN
    weights += [-inf] * blank
    added = torch.tensor(weights, device=k.device).expand(len(k), -1)
    if known and any(share.level <= PAIRS for share in tile.shares):
        added = added + known.untold
    levels, sides = _levels(known), []
    for name, of in (("keys", k), ("values", v)):
        means = [getattr(levels[share.level], name)[:, share.parts].to(of.dtype) for share in tile.shares]
        empty = of.new_zeros(len(of), blank, of.shape[2])
        sides.append(torch.cat([*means, empty, of[:, tile.sinks], of[:, tile.near]], 1))
    return sides[0], sides[1], added.to(k.dtype)
