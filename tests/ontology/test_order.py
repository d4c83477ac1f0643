"""Cycles of a hierarchy: each found, each real, and none left without the edges that close them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from domainkit.ontology.order import acyclic, cycles

graphs = st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 11), max_size=5), max_size=10)


def reachable(parents: dict[int, list[int]], start: int) -> set[int]:
    seen: set[int] = set()
    queue = list(parents.get(start, ()))
    while queue:
        if (one := queue.pop()) not in seen:
            seen.add(one)
            queue += parents.get(one, ())
    return seen


@given(graphs)
def test_what_is_reported_is_a_cycle(parents: dict[int, list[int]]) -> None:
    for cycle in cycles(parents):
        assert len(set(cycle)) == len(cycle) > 0
        assert all(above in parents[one] for one, above in zip(cycle, (*cycle[1:], cycle[0]), strict=True))


@given(graphs)
def test_a_cycle_is_found_where_there_is_one(parents: dict[int, list[int]]) -> None:
    assert bool(list(cycles(parents))) == any(one in reachable(parents, one) for one in parents)


@given(graphs)
def test_acyclic_takes_out_what_it_says_and_leaves_no_cycle(parents: dict[int, list[int]]) -> None:
    kept, dropped = acyclic(parents)
    assert not list(cycles(kept))
    assert {(child, one) for child, values in parents.items() for one in values} == {
        (child, one) for child, values in kept.items() for one in values
    } | set(dropped)
    assert all(child in reachable(parents, parent) or child == parent for child, parent in dropped)


def test_no_hierarchy_is_too_deep() -> None:
    deep = {i: [i + 1] for i in range(100_000)}
    assert list(cycles(deep)) == []
    deep[100_000] = [0]
    assert [len(cycle) for cycle in cycles(deep)] == [100_001]
