"""Cycles of a hierarchy: found without recursion, so that none is too deep and none is endless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K", str, int)


def cycles(parents: Mapping[K, Sequence[K]]) -> Iterator[list[K]]:
    """One cycle for each edge that closes one: [a, b, c] means a → b → c → a, each the parent of the one before.

    A depth-first search over the keys in their order; without the edges c → a that it reports, the hierarchy has
    no cycle. A parent that is no key has no parents.
    """
    done: set[K] = set()
    for start in parents:
        if start in done:
            continue
        way, place, open_ = [start], {start: 0}, [iter(parents[start])]  # from `start` up to where the search is
        while way:
            for above in open_[-1]:
                if above in place:
                    yield way[place[above] :]
                elif above in parents and above not in done:
                    place[above] = len(way)
                    way.append(above)
                    open_.append(iter(parents[above]))
                    break
            else:
                open_.pop()
                done.add(way[-1])
                del place[way.pop()]


def acyclic(parents: Mapping[K, Sequence[K]]) -> tuple[dict[K, tuple[K, ...]], list[tuple[K, K]]]:
    """The hierarchy without the edges that close a cycle, and those edges as (child, parent)."""
    dropped = list(dict.fromkeys((cycle[-1], cycle[0]) for cycle in cycles(parents)))
    if not dropped:
        return {key: tuple(values) for key, values in parents.items()}, []
    gone = set(dropped)
    return {key: tuple(v for v in values if (key, v) not in gone) for key, values in parents.items()}, dropped
