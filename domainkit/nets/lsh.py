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
TILE = 64  # tokens that are worked on at once; a part of BLOCK
TOGETHER = 4  # key heads that are


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
                known = index.levels[row] if index is not None and documents is None else {}
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
              known: dict[int, list[Level]]) -> Tensor:  # fmt: skip
    """(heads, queries, width) of one document, its keys (key heads, tokens, width). known: by first key head; extended
    here."""
    group, outs = len(q) // len(k), []
    for head in range(0, len(k), TOGETHER):
        key, value = k[head : head + TOGETHER], v[head : head + TOGETHER]
        if keys:
            known[head] = hashed(key.detach(), scored_in, known.get(head, ()))
        asked = q[head * group : (head + len(key)) * group].unflatten(0, (len(key), group)).transpose(1, 2)
        out = _Attention.apply(
            asked, key, value, scale, known.get(head, ()), keys
        )  # (key heads, queries, group, width)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


class Index:
    """The cells of a text that grows, as a key-value cache does: of each row and each key head.

    It only says where to look: the keys and values themselves are always those of the call.
    """

    def __init__(self) -> None:
        self.levels: list[dict[int, list[Level]]] = []
        self._seen = torch.empty(0)  # (rows, key heads, some tokens, width)

    def follow(self, k: Tensor, queries: int) -> None:
        """Keep what is known if k goes on where the last call ended, else begin anew."""
        before = k.shape[2] - queries
        same = self._sample(k[:, :, :before])
        if not before or same.shape != self._seen.shape or not torch.equal(same, self._seen):
            self.levels = [{} for _ in k]
        self._seen = self._sample(k).clone()

    @staticmethod
    def _sample(k: Tensor) -> Tensor:
        """A few of the keys, the last among them; which ones depends on how many there are."""
        return k.detach()[:, :, torch.linspace(0, k.shape[2] - 1, min(k.shape[2], 33)).long()]


@dataclass(frozen=True)
class Level:
    """Where the keys of all complete segments of one size are found."""

    members: Tensor  # (key heads, cells, keys of a cell) int64: their positions
    means: Tensor  # (key heads, width + 2, cells), two rows of ones below


@torch.no_grad()
def hashed(keys: Tensor, scored_in: torch.dtype, known: Sequence[Level] = ()) -> list[Level]:
    """keys: (key heads, tokens, width) → a level for each of SEGMENTS. The first SINKS tokens are in none.

    known: the levels of the first of these keys, which are taken over.
    """
    rest, levels = keys[:, SINKS:], []
    for number, (size, cell) in enumerate(SEGMENTS):
        done = known[number].members[0].numel() if known else 0
        end = done + max(rest.shape[1] - done, 0) // size * size
        new = rest[:, done:end].float()  # (key heads, tokens, width)
        cells = _cells(new.reshape(-1, size, rest.shape[2]), cell)
        means = pad(new.flatten(0, 1)[cells].mean(1), (0, 2), value=1.0).to(scored_in).unflatten(0, (len(keys), -1))
        members = cells.unflatten(0, (len(keys), -1)) - _first(keys, end - done)[..., None] + SINKS + done
        level = Level(members, means.transpose(1, 2).contiguous())
        if known:
            old = known[number]
            level = Level(torch.cat([old.members, level.members], 1), torch.cat([old.means, level.means], 2))
        levels.append(level if end > done or not known else known[number])
    return levels


def _first(of: Tensor, size: int) -> Tensor:
    """Where each head begins when heads of this size follow one another: (heads, 1)."""
    return torch.arange(len(of), device=of.device)[:, None] * size


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
    """The keys before `position` that each query reads: (key heads, tokens, at most `keys`), as many from each level.

    q: (key heads, tokens, group, width), scaled; lse: (key heads, tokens, group) of what is read anyway. The score of a
    cell is q·mean - lse, one matrix product: the lse, in two parts for short precisions, goes with the rows of ones.
    """
    dtype = levels[0].means.dtype
    rough = -lse.to(dtype)
    asked = torch.cat([q.to(dtype), torch.stack([rough, (-lse - rough).to(dtype)], -1)], -1)
    parts, found = _before(position), []
    for left in range(len(parts), 0, -1):  # from the smallest level: what it does not need, the others take
        level, cells = parts[left - 1]
        members, means = levels[level].members[:, cells], levels[level].means[:, :, cells]
        take = keys // left // members.shape[2]
        if take < members.shape[1]:
            best = _best(asked, means, take) + _first(members, members.shape[1])[..., None]
            found.append(members.flatten(0, 1)[best].flatten(2))
        else:
            found.append(members.flatten(1)[:, None].expand(-1, q.shape[1], -1))
        keys -= found[-1].shape[2]
    return torch.cat(found, 2)


def _best(q: Tensor, means: Tensor, take: int) -> Tensor:
    """The cells that any of the group scores highest, at most one from each bin: (key heads, tokens, take)."""
    heads, tokens, group, _ = q.shape
    count, bins = means.shape[2], BINS * max(take, 1)
    deep = -(-count // bins)
    scores = q.new_empty(heads, tokens * group, deep * bins)
    scores[..., count:] = torch.finfo(q.dtype).min
    for of, asked, mean in zip(scores, q.flatten(1, 2), means, strict=True):
        torch.mm(asked, mean, out=of[:, :count])
    best = scores.view(heads, tokens, group, deep, bins)[:, :, 0]
    for other in range(1, group):
        best = torch.maximum(best, scores.view(heads, tokens, group, deep, bins)[:, :, other])
    value, chosen = best.amax(2).topk(take, 2, sorted=False)
    inside = best.gather(3, chosen[:, :, None].expand(-1, -1, deep, -1))
    depth = torch.arange(deep, device=q.device, dtype=torch.float32)[:, None]
    return torch.where(inside == value[:, :, None], depth, 0.0).amax(2).long() * bins + chosen


class _Attention(torch.autograd.Function):
    """q: (key heads, queries, group, width), k: (key heads, tokens, width), v: (key heads, tokens, value width) →
    (key heads, queries, group, value width)"""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, levels: Sequence[Level], keys: int) -> Tensor:
        first = k.shape[1] - q.shape[1]
        out, lse = q.new_empty(*q.shape[:3], v.shape[2]), q.new_empty(q.shape[:3], dtype=torch.float32)
        picks, far = list[Tensor](), _Far(k, v, keys)
        for start, end, near in _tiles(first, k.shape[1]):
            rows = slice(start - first, end - first)
            asked = q[:, rows] * scale
            scores = _near(asked, _both(k, near, end))
            most = scores.amax(3)
            shares = scores.sub_(most[..., None]).exp_()
            total = shares.sum(3)
            got = torch.bmm(shares.flatten(1, 2).to(v.dtype), _both(v, near, end)).float().view(*total.shape, -1)
            picked = torch.empty(0)
            if keys and near > SINKS:
                picked = _choose(asked, most + total.log(), levels, near, keys)
                _, kg, vg = far.of(picked)
                scores = torch.bmm(asked.flatten(0, 1), kg.transpose(1, 2)).float().view(*total.shape, -1)
                over = torch.maximum(scores.amax(3), most)
                shares = scores.sub_(over[..., None]).exp_()
                less = (most - over).exp_()
                got.mul_(less[..., None]).add_(torch.bmm(shares.flatten(0, 1).to(v.dtype), vg).view_as(got))
                total, most = total * less + shares.sum(3), over
            picks.append(picked)
            out[:, rows] = got.div_(total[..., None])
            lse[:, rows] = most + total.log()
        ctx.save_for_backward(q, k, v, out, lse, *picks)
        ctx.rest = scale, keys
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By the sums that the forward pass kept (FlashAttention, Dao et al. 2022, arXiv 2205.14135)."""
        q, k, v, out, lse, *picks = ctx.saved_tensors
        scale, keys = ctx.rest
        first, far, dq = k.shape[1] - q.shape[1], _Far(k, v, keys), torch.empty_like(q)
        dk, dv = (torch.zeros(of.shape, device=of.device) for of in (k, v))
        for (start, end, near), picked in zip(_tiles(first, k.shape[1]), picks, strict=True):
            rows = slice(start - first, end - first)
            asked, g, sums = q[:, rows] * scale, grad[:, rows].contiguous(), lse[:, rows][..., None]
            drift = (g.float() * out[:, rows].float()).sum(-1, keepdim=True)  # (key heads, tokens, group, 1)
            kn, vn = _both(k, near, end), _both(v, near, end)
            shares = _near(asked, kn).sub_(sums).exp_()
            moves = torch.bmm(g.flatten(1, 2), vn.transpose(1, 2)).float().view_as(shares).sub_(drift).mul_(shares)
            moves, shares = (of.flatten(1, 2).to(q.dtype) for of in (moves, shares))
            dq[:, rows] = torch.bmm(moves, kn).view_as(asked)
            _add(dk, near, end, torch.bmm(moves.transpose(1, 2), asked.flatten(1, 2)))
            _add(dv, near, end, torch.bmm(shares.transpose(1, 2), g.flatten(1, 2)))
            if picked.numel():
                ids, kg, vg = far.of(picked)
                asked, g, sums, drift = (of.flatten(0, 1) for of in (asked, g, sums, drift))
                shares = torch.bmm(asked, kg.transpose(1, 2)).float().sub_(sums).exp_()
                moves = torch.bmm(g, vg.transpose(1, 2)).float().sub_(drift).mul_(shares)
                moves, shares = moves.to(q.dtype), shares.to(q.dtype)
                dq[:, rows] += torch.bmm(moves, kg).view_as(dq[:, rows])
                dk.flatten(0, 1).index_add_(0, ids, torch.bmm(moves.transpose(1, 2), asked).flatten(0, 1).float())
                dv.flatten(0, 1).index_add_(0, ids, torch.bmm(shares.transpose(1, 2), g).flatten(0, 1).float())
        return dq.mul_(scale), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _tiles(first: int, tokens: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, where the block before its own starts) of each tile of queries."""
    start = first
    while start < tokens:
        number = max(start - SINKS, 0) // TILE
        end = min(SINKS + (number + 1) * TILE, tokens)
        yield start, end, SINKS + max(number * TILE // BLOCK - 1, 0) * BLOCK
        start = end


def _near(q: Tensor, k: Tensor) -> Tensor:
    """Scores (key heads, tokens, group, keys) float32, causal: the tile's own tokens are the last of k."""
    scores = torch.bmm(q.flatten(1, 2), k.transpose(1, 2)).float().view(*q.shape[:3], -1)
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=k.device).triu_(1)
    scores[..., -q.shape[1] :].masked_fill_(later[:, None], torch.finfo(torch.float32).min)
    return scores


def _both(of: Tensor, near: int, end: int) -> Tensor:
    """The sinks, and what lies from `near` to `end`."""
    return torch.cat([of[:, : min(SINKS, end)], of[:, near:end]], 1)


def _add(to: Tensor, near: int, end: int, what: Tensor) -> None:
    """Adds to what `_both` gives."""
    sinks = min(SINKS, end)
    to[:, :sinks] += what[:, :sinks]
    to[:, near:end] += what[:, sinks:]


class _Far:
    """Gathers keys and values into room that is used again: fresh memory costs more than the copy."""

    def __init__(self, k: Tensor, v: Tensor, keys: int) -> None:
        rows = len(k) * TILE * min(keys, k.shape[1])
        self.first = _first(k, k.shape[1])[..., None]
        self.sides = [(of.detach().flatten(0, 1), of.new_empty(rows, of.shape[2])) for of in (k, v)]

    def of(self, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """picked: (key heads, tokens, count) → where that is when heads follow one another, flat; the keys and values,
        (key heads * tokens, count, width) each."""
        ids, shape = (picked + self.first).flatten(), (-1, picked.shape[2])
        kg, vg = (torch.index_select(of, 0, ids, out=room[: len(ids)]).unflatten(0, shape) for of, room in self.sides)
        return ids, kg, vg
