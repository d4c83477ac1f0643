"""LSH attention: causal attention in near-linear time for decoders that were trained with dense attention.

Every query reads exactly, under one softmax,

- the first SINKS tokens, where trained models look when they look at nothing (StreamingLLM, Xiao et al. 2023, arXiv
  2309.17453),
- its own block of BLOCK tokens so far, and the block before,
- of all that lies further back, the `keys` tokens that it most likely attends to.

The last are found by hashing. Queries and keys of a pretrained decoder lie apart and have lengths, so one hash for both
(Reformer, Kitaev et al. 2020, arXiv 2001.04451; HyperAttention, Han et al. 2023, arXiv 2310.05869) does not bring them
together; here only keys are hashed, and a query is compared with what a bucket holds on average (Squeezed Attention,
Hooper et al. 2024, arXiv 2411.09688):

1. Complete segments of keys are hashed into cells: split in halves at the median along their leading principal
   direction, each half again along its own. All cells of a segment are equally full, so every shape is regular.
   O(n log n).
2. A small segment is hashed as soon as it is complete, and its keys once more when the larger one around it is, as in a
   log-structured merge tree: the larger a segment, the purer its cells. A query finds each key in one of them. Larger
   segments have larger cells. O(n log n) for each of SEGMENTS.
3. A query scores the mean of each cell's keys and takes the best cells of each size of segment; the query heads of one
   key head take the same ones, by the largest share that any of them would give. n times the number of cells, in
   products of short vectors: of its cost this is the part that is not linear.
4. One softmax over all of it. The backward pass keeps the choice and the log of the softmax's sum, and gathers again.

Strictly causal, the choice included: cells hold segments that end before the query's block and the one before it, so a
later token changes no bit of an earlier output. No tensor has n x n elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

SINKS = 16
BLOCK = 256
SEGMENTS = (64 * BLOCK, 8), (8 * BLOCK, 2), (BLOCK, 2)  # keys of a segment and of its cells; each a part of the former
KEYS = 128
STEPS = 2  # of the power iteration that finds a direction; more find no better cells
BINS = 8  # for each cell to take; of a bin one cell at most is taken (Chern et al. 2022, arXiv 2206.14286)
TILE = 128  # tokens that are worked on at once; a part of BLOCK
PART = 64  # of them whose scores are held at once; a part of TILE


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, *, keys: int = KEYS, documents: Tensor | None = None,
           scored_in: torch.dtype | None = None, index: Index | None = None) -> Tensor:  # fmt: skip
    """Attention of q to k: (batch, heads, queries, value width), differentiable in q, k and v.

    q: (batch, heads, queries, width), of the last queries of the tokens; k: (batch, key heads, tokens, width); v:
    (batch, key heads, tokens, value width). heads is a multiple of key heads; the widths may differ.
    keys: how many a query reads besides sinks and blocks; when they are all, this is dense attention.
    documents: (batch, tokens), a number for each; a token reads its own document only, which is one stretch of tokens.
    Below 0 is padding: nothing reads it, and its output is 0. None: a row is a document.
    scored_in: precision of step 3, e.g. bfloat16 where the processor is fast at it; None: that of k.
    index: of a text that grows, without documents: what earlier calls hashed is not hashed again.

    Raises ValueError: shapes that do not fit, an integer dtype, keys or values that are not finite.
    """
    _check(q, k, v, whole=index is None)
    if index is not None:
        index.follow(k, q.shape[2])
    rows = [_runs(row) for row in documents] if documents is not None else [[(0, k.shape[2], True)]] * len(q)
    first = k.shape[2] - q.shape[2]
    outs = []
    for row, runs in enumerate(rows):
        parts = [q.new_zeros(q.shape[1], 0, v.shape[3])]
        for start, end, real in runs:
            asked = q[row, :, max(start - first, 0) : max(end - first, 0)]
            if not real:
                parts.append(asked.new_zeros(*asked.shape[:2], v.shape[3]))
            elif asked.shape[1]:
                known = index.levels[row] if index is not None and documents is None else [[] for _ in k[row]]
                of = k[row, :, start:end], v[row, :, start:end]
                parts.append(_document(asked, *of, scale, keys, scored_in or k.dtype, known))
        outs.append(torch.cat(parts, 1))
    return torch.stack(outs)


def _check(q: Tensor, k: Tensor, v: Tensor, *, whole: bool) -> None:
    fits = k.shape[:3] == v.shape[:3] and len(q) == len(k) and q.shape[3] == k.shape[3]
    if not fits or q.shape[1] % k.shape[1] or q.shape[2] > k.shape[2]:
        raise ValueError(f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype):
        raise ValueError(f"queries are {q.dtype}, keys {k.dtype}, values {v.dtype}: one floating-point type is needed")
    first = 0 if whole else k.shape[2] - q.shape[2]  # an index saw the others
    for name, of in (("key", k[:, :, first:]), ("value", v[:, :, first:])):
        if not bool(torch.isfinite(of).all()):
            row, head, token = (~torch.isfinite(of).all(-1)).nonzero()[0].tolist()
            raise ValueError(f"the {name} of token {first + token}, head {head}, row {row} is not finite")


def _runs(documents: Tensor) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is no padding) of each stretch of one number."""
    numbers, counts = documents.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [(end - count, end, number >= 0)
            for number, count, end in zip(numbers.tolist(), counts.tolist(), ends, strict=True)]  # fmt: skip


def _document(q: Tensor, k: Tensor, v: Tensor, scale: float, keys: int, scored_in: torch.dtype,
              known: list[list[Level]]) -> Tensor:  # fmt: skip
    """(heads, queries, width) of one document, its keys (key heads, tokens, width). known: of each key head, extended
    here."""
    group, outs = len(q) // len(k), []
    for head, (key, value) in enumerate(zip(k, v, strict=True)):
        if keys:
            known[head] = hashed(key.detach(), scored_in, known[head])
        asked = q[head * group : (head + 1) * group].transpose(0, 1)  # (queries, group, width)
        outs.append(_Attention.apply(asked, key, value, scale, known[head], keys))
    return torch.cat(outs, 1).transpose(0, 1)


class Index:
    """The cells of a text that grows, as a key-value cache does: of each row and each key head.

    It only says where to look: the keys and values themselves are always those of the call.
    """

    def __init__(self) -> None:
        self.levels: list[list[list[Level]]] = []
        self._seen = torch.empty(0)  # (rows, key heads, some tokens, width)

    def follow(self, k: Tensor, queries: int) -> None:
        """Keep what is known if k goes on where the last call ended, else begin anew."""
        before = k.shape[2] - queries
        same = self._sample(k[:, :, :before])
        if not before or same.shape != self._seen.shape or not torch.equal(same, self._seen):
            self.levels = [[[] for _ in row] for row in k]
        self._seen = self._sample(k).clone()

    @staticmethod
    def _sample(k: Tensor) -> Tensor:
        """A few of the keys, the last among them; which ones depends on how many there are."""
        return k.detach()[:, :, torch.linspace(0, k.shape[2] - 1, min(k.shape[2], 33)).long()]


@dataclass(frozen=True)
class Level:
    """Where the keys of all complete segments of one size are found."""

    members: Tensor  # (cells, keys of a cell) int64: their positions
    means: Tensor  # (width + 2, cells), two rows of ones below


@torch.no_grad()
def hashed(keys: Tensor, scored_in: torch.dtype, known: Sequence[Level] = ()) -> list[Level]:
    """keys: (tokens, width) → a level for each of SEGMENTS. The first SINKS tokens are in none.

    known: the levels of the first of these keys, which are taken over.
    """
    rest, levels = keys[SINKS:], []
    for number, (size, cell) in enumerate(SEGMENTS):
        done = known[number].members.numel() if known else 0
        count = max(len(rest) - done, 0) // size
        new = rest[done : done + count * size].float()
        cells = _cells(new.view(count, size, rest.shape[1]), cell)
        means = pad(new[cells].mean(1), (0, 2), value=1.0).to(scored_in).T.contiguous()
        level = Level(cells + SINKS + done, means)
        if known and count:
            old = known[number]
            level = Level(torch.cat([old.members, level.members]), torch.cat([old.means, level.means], 1))
        levels.append(level if count or not known else known[number])
    return levels


def _cells(segments: Tensor, cell: int) -> Tensor:
    """Splits (segments, size, width) in halves, and those again: (segments * size / cell, cell), numbers of keys."""
    count, size, width = segments.shape
    keys, draw = segments.flatten(0, 1), torch.Generator().manual_seed(0)
    members = torch.arange(count * size, device=keys.device).view(count, size)
    for _ in range(int(log2(size // cell))):
        inside = keys.index_select(0, members.flatten()).view(*members.shape, width)
        inside = inside - inside.mean(1, keepdim=True)
        direction = torch.randn(width, 1, generator=draw).to(keys.device).expand(len(members), -1, -1)
        for _ in range(STEPS):
            direction = normalize(inside.transpose(1, 2) @ (inside @ direction), dim=1)
        order = (inside @ direction)[..., 0].argsort(dim=1, stable=True)
        members = members.gather(1, order).view(-1, members.shape[1] // 2)
    return members.sort(1).values


def _before(position: int) -> list[tuple[int, slice]]:
    """(level, which of its cells), the largest segments first, that hold each key from SINKS to `position` once."""
    found, done, end = [], 0, position - SINKS
    for level, (size, cell) in enumerate(SEGMENTS):
        reach = end // size * size
        if reach > done:
            found.append((level, slice(done // cell, reach // cell)))
            done = reach
    return found


def _choose(q: Tensor, lse: Tensor, levels: Sequence[Level], position: int, keys: int) -> Tensor:
    """The keys before `position` that each query reads: (tokens, at most `keys`), as many from each level.

    q: (tokens, group, width), scaled; lse: (tokens, group) of what is read anyway. The score of a cell is q·mean - lse,
    one matrix product: the lse, in two parts for short precisions, goes with the rows of ones.
    """
    dtype = levels[0].means.dtype
    rough = -lse.to(dtype)
    asked = torch.cat([q.to(dtype), torch.stack([rough, (-lse - rough).to(dtype)], -1)], -1)
    parts, found = _before(position), []
    for left in range(len(parts), 0, -1):  # from the smallest level: what it does not need, the others take
        level, cells = parts[left - 1]
        members, means = levels[level].members[cells], levels[level].means[:, cells]
        take = keys // left // members.shape[1]
        picked = members[_best(asked, means, take)] if take < len(members) else members.expand(len(q), -1, -1)
        found.append(picked.flatten(1))
        keys -= found[-1].shape[1]
    return torch.cat(found, 1)


def _best(q: Tensor, means: Tensor, take: int) -> Tensor:
    """The cells that any of the group scores highest, at most one from each bin: (tokens, take)."""
    group, count, bins = q.shape[1], means.shape[1], BINS * max(take, 1)
    deep = -(-count // bins)
    scores, found = q.new_empty(PART, group, deep * bins), []
    scores[..., count:] = torch.finfo(q.dtype).min
    depth = torch.arange(deep, device=q.device, dtype=torch.float32)[:, None]
    for rows in q.split(PART):
        of = scores[: len(rows)]
        torch.mm(rows.flatten(0, 1), means, out=of.flatten(0, 1)[:, :count])
        best = of[:, 0]
        for other in range(1, group):
            best = torch.maximum(best, of[:, other])
        best = best.view(-1, deep, bins)
        value, chosen = best.amax(1).topk(take, 1, sorted=False)
        inside = best.gather(2, chosen[:, None].expand(-1, deep, -1))
        found.append(torch.where(inside == value[:, None], depth, 0.0).amax(1).long() * bins + chosen)
    return torch.cat(found)


class _Attention(torch.autograd.Function):
    """q: (queries, group, width), k: (tokens, width), v: (tokens, value width) → (queries, group, value width)"""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, levels: Sequence[Level], keys: int) -> Tensor:
        first = len(k) - len(q)
        out, lse = q.new_empty(*q.shape[:2], v.shape[1]), q.new_empty(q.shape[:2], dtype=torch.float32)
        picks, far = list[Tensor](), _Far(k, v, TILE * min(keys, len(k)))
        for start, end, near in _tiles(first, len(k)):
            rows = slice(start - first, end - first)
            asked = q[rows] * scale
            scores = _near(asked, _both(k, near, end), end - start)
            most = scores.amax(2)
            shares = scores.sub_(most[..., None]).exp_()
            total = shares.sum(2)
            got = (shares.flatten(0, 1).to(v.dtype) @ _both(v, near, end)).float().unflatten(0, shares.shape[:2])
            picked = torch.empty(0)
            if keys and near > SINKS:
                picked = _choose(asked, most + total.log(), levels, near, keys)
                kg, vg = far.of(picked)
                scores = torch.bmm(asked, kg.transpose(1, 2)).float()
                over = torch.maximum(scores.amax(2), most)
                shares = scores.sub_(over[..., None]).exp_()
                less = (most - over).exp_()
                got = got.mul_(less[..., None]).add_(torch.bmm(shares.to(v.dtype), vg))
                total, most = total * less + shares.sum(2), over
            picks.append(picked)
            out[rows] = got.div_(total[..., None])
            lse[rows] = most + total.log()
        ctx.save_for_backward(q, k, v, out, lse, *picks)
        ctx.rest = scale, keys
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By the sums that the forward pass kept (FlashAttention, Dao et al. 2022, arXiv 2205.14135)."""
        q, k, v, out, lse, *picks = ctx.saved_tensors
        scale, keys = ctx.rest
        first, far = len(k) - len(q), _Far(k, v, TILE * min(keys, len(k)))
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(of, dtype=torch.float32) for of in (k, v))
        for (start, end, near), picked in zip(_tiles(first, len(k)), picks, strict=True):
            rows = slice(start - first, end - first)
            asked, g = q[rows] * scale, grad[rows].contiguous()
            drift = (g.float() * out[rows].float()).sum(-1, keepdim=True)  # (tokens, group, 1)
            kn, vn = _both(k, near, end), _both(v, near, end)
            shares = _near(asked, kn, end - start).sub_(lse[rows][..., None]).exp_()
            moves = ((g.flatten(0, 1) @ vn.T).float().view_as(shares) - drift).mul_(shares).flatten(0, 1).to(q.dtype)
            dq[rows] = (moves @ kn).view_as(asked)
            _add(dk, near, end, moves.T @ asked.flatten(0, 1))
            _add(dv, near, end, shares.flatten(0, 1).to(q.dtype).T @ g.flatten(0, 1))
            if picked.numel():
                kg, vg = far.of(picked)
                shares = torch.bmm(asked, kg.transpose(1, 2)).float().sub_(lse[rows][..., None]).exp_()
                moves = (torch.bmm(g, vg.transpose(1, 2)).float() - drift).mul_(shares).to(q.dtype)
                dq[rows] += torch.bmm(moves, kg)
                shares = shares.to(q.dtype)
                dk.index_add_(0, picked.flatten(), torch.bmm(moves.transpose(1, 2), asked).flatten(0, 1).float())
                dv.index_add_(0, picked.flatten(), torch.bmm(shares.transpose(1, 2), g).flatten(0, 1).float())
        return dq.mul_(scale), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _tiles(first: int, tokens: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, where the block before its own starts) of each tile of queries."""
    start = first
    while start < tokens:
        number = max(start - SINKS, 0) // TILE
        end = min(SINKS + (number + 1) * TILE, tokens)
        yield start, end, SINKS + max(number * TILE // BLOCK - 1, 0) * BLOCK
        start = end


def _near(q: Tensor, k: Tensor, tokens: int) -> Tensor:
    """Scores (tokens, group, keys) float32, causal: the tile's own tokens are the last of k."""
    scores = (q.flatten(0, 1) @ k.T).float().view(*q.shape[:2], -1)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=k.device).triu_(1)
    scores[..., -tokens:].masked_fill_(later[:, None], torch.finfo(torch.float32).min)
    return scores


def _both(of: Tensor, near: int, end: int) -> Tensor:
    """The rows of the sinks, and those from `near` to `end`."""
    return torch.cat([of[: min(SINKS, end)], of[near:end]])


def _add(to: Tensor, near: int, end: int, what: Tensor) -> None:
    """Adds to the rows that `_both` gives."""
    sinks = min(SINKS, end)
    to[:sinks] += what[:sinks]
    to[near:end] += what[sinks:]


class _Far:
    """Gathers keys and values into room that is used again: fresh memory costs more than the copy."""

    def __init__(self, k: Tensor, v: Tensor, rows: int) -> None:
        self.sides = [(of, of.new_empty(rows, of.shape[1])) for of in (k.detach(), v.detach())]

    def of(self, picked: Tensor) -> list[Tensor]:
        """picked: (tokens, count) → keys and values, (tokens, count, width) each."""
        ids = picked.flatten()
        return [torch.index_select(of, 0, ids, out=room[: len(ids)]).view(*picked.shape, -1) for of, room in self.sides]
