"""Split documents, mix slices by share of tokens, and pack sequences into rows. Pure Python."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from domainkit.types import Example

MAX_REPEATS = 4  # more passes over one slice add little: arXiv 2305.16264 (four epochs count almost as new)
TOLERANCE = 0.01  # a share may be off by this much: one percentage point
SMALLEST = 0.5  # of the wanted total; below it a mixture is given up rather than made smaller
WINDOW = 2048  # sequences sorted together: enough for waste below 1 %, few enough to keep the order


@dataclass(frozen=True)
class Mixture:
    """What to train on, in order, and how well the shares were met."""

    order: tuple[tuple[str, int], ...]  # (slice, index of the sequence in the slice)
    tokens_per_slice: dict[str, int]
    repeats_per_slice: dict[str, float]  # tokens taken / tokens there are, at most MAX_REPEATS


def split(examples: Iterable[Example], *, test: float = 0.2) -> tuple[list[Example], list[Example]]:
    """Split into train and test by a hash of the group, else the id, else the text.

    About `test` of the groups go to the test side. The side depends on nothing else, so adding or taking
    away documents never moves others, on any machine. Raises ValueError unless 0 ≤ test ≤ 1.
    """
    if not 0 <= test <= 1:
        raise ValueError(f"test is {test}, not between 0 and 1")
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        key = example.group or example.id or example.text
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        sides[int.from_bytes(digest[:8], "big") < test * 2**64].append(example)
    return sides


def mixture(lengths: Mapping[str, Sequence[int]], shares: Mapping[str, float], tokens: int, seed: int) -> Mixture:
    """Choose about `tokens` tokens so that every slice has its share to within TOLERANCE, in seeded order.

    `lengths` holds the tokens of each sequence, by slice. A slice that is too small repeats, but at most
    MAX_REPEATS times: then the total shrinks instead. The total also shrinks, down to half, if that is
    what it takes to meet the shares with whole sequences. If nothing meets them, the closest is returned.
    Raises ValueError for shares that do not add up to 1 and for slices that are unknown or empty.
    """
    wanted = _wanted(lengths, shares, tokens)
    pools = {name: sum(lengths[name]) for name in wanted}
    total = min([float(tokens), *(MAX_REPEATS * pools[name] / wanted[name] for name in wanted)])
    best: dict[str, list[int]] = {}
    closest = 2.0  # above any distance between shares
    for percent in range(100, int(100 * SMALLEST) - 1, -1):
        chosen = {
            name: _fill(lengths[name], round(wanted[name] * total * percent / 100), f"{seed}:{name}") for name in wanted
        }
        off = _distance({name: _sum(lengths[name], chosen[name]) for name in chosen}, wanted)
        if off < closest:
            best, closest = chosen, off
        if closest <= TOLERANCE:
            break
    order = [(name, index) for name in sorted(best) for index in best[name]]
    random.Random(f"{seed}:order").shuffle(order)
    taken = {name: _sum(lengths[name], best[name]) if name in best else 0 for name in shares}
    repeats = {name: taken[name] / pools[name] if name in pools else 0.0 for name in shares}
    return Mixture(tuple(order), taken, repeats)


def _wanted(lengths: Mapping[str, Sequence[int]], shares: Mapping[str, float], tokens: int) -> dict[str, float]:
    """The shares above zero, checked."""
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}, must be at least 1")
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares must be 0 or more and add up to 1: {dict(shares)}")
    wanted = {name: share for name, share in shares.items() if share > 0}
    empty = [name for name in wanted if not lengths.get(name)]
    if empty:
        raise ValueError(f"no sequences in slice {empty}, which should make up {[wanted[name] for name in empty]}")
    broken = [name for name in wanted if min(lengths[name]) < 1]
    if broken:
        raise ValueError(f"sequences without tokens in slice {broken}")
    return wanted


def _sum(lengths: Sequence[int], indices: Sequence[int]) -> int:
    return sum(lengths[index] for index in indices)


def _distance(taken: Mapping[str, int], wanted: Mapping[str, float]) -> float:
    """The largest difference between a share taken and a share wanted; 2 if nothing was taken."""
    total = sum(taken.values())
    return max(abs(taken[name] / total - wanted[name]) for name in wanted) if total else 2.0


def _fill(lengths: Sequence[int], target: int, seed: str) -> list[int]:
    """Indices whose lengths add up to `target` as closely as can be: whole rounds, then a part of one."""
    rounds, rest = divmod(target, sum(lengths))
    indices = list(range(len(lengths)))
    random.Random(seed).shuffle(indices)
    chosen, left = [], []
    for index in indices:
        if lengths[index] <= rest:
            chosen.append(index)
            rest -= lengths[index]
        else:
            left.append(index)
    return indices * rounds + _swap(lengths, chosen, left, rest)


def _swap(lengths: Sequence[int], chosen: list[int], left: list[int], gap: int) -> list[int]:
    """Add, drop or swap one sequence at a time, for as long as that brings the gap closer to 0.

    `gap` is in tokens, positive when tokens are missing. A swap is the best pair (out, in).
    """
    kept, pool = list(chosen), sorted((lengths[index], index) for index in left)
    while gap and pool:
        best = (abs(gap), -1, -1)  # gap afterwards, position in kept (-1: none), position in pool
        for place in range(-1, len(kept)):
            want = gap + (lengths[kept[place]] if place >= 0 else 0)
            at = bisect_left(pool, (want, -1))
            for near in (at - 1, at):
                if 0 <= near < len(pool):
                    best = min(best, (abs(want - pool[near][0]), place, near))
        after, place, near = best
        if after >= abs(gap):
            break
        length, index = pool.pop(near)
        gap -= length
        if place >= 0:
            out = kept.pop(place)
            gap += lengths[out]
            insort(pool, (lengths[out], out))
        kept.append(index)
    return kept


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put whole sequences into rows of at most `size` tokens; returns the indices in each row.

    Best fit, longest first, within windows of WINDOW sequences. Rows come in the order of their first
    sequence, sequences within a row in their own order. Raises ValueError for a length outside 1 … size.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= size:
            raise ValueError(f"sequence {index} has {length} tokens, a row holds 1 to {size}")
    rows: list[list[int]] = []
    for start in range(0, len(lengths), WINDOW):
        rows += _pack_window(lengths, range(start, min(start + WINDOW, len(lengths))), size)
    return rows


def _pack_window(lengths: Sequence[int], window: range, size: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens free, row), sorted
    for index in sorted(window, key=lambda index: (-lengths[index], index)):
        at = bisect_left(free, (lengths[index], -1))  # the fullest row it fits in
        room, row = free.pop(at) if at < len(free) else (size, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return sorted(sorted(row) for row in rows)
