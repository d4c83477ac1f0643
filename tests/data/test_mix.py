"""Splitting, mixing and packing: the promises hold for whatever Hypothesis thinks of."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainkit.data.mix import MAX_REPEATS, TOLERANCE, mixture, pack, split
from domainkit.types import Example

names = st.text(min_size=1, max_size=12)
documents = st.lists(st.builds(Example, text=names, id=names, group=st.one_of(st.just(""), names)), max_size=60)


@given(documents, documents, st.floats(0, 1))
def test_split_keeps_groups_whole_and_never_moves_a_document(
    first: list[Example], more: list[Example], test: float
) -> None:
    train, held = split(first, test=test)
    assert Counter(train + held) == Counter(first)
    assert not {e.group or e.id for e in train} & {e.group or e.id for e in held}
    bigger_train, bigger_held = split(more + first, test=test)
    assert set(train) <= set(bigger_train) and set(held) <= set(bigger_held)


def test_split_is_the_same_on_every_machine() -> None:
    examples = [Example("", id=f"doc-{number}") for number in range(2000)]
    held = [e.id for e in split(examples, test=0.1)[1]]
    assert held[:4] == ["doc-7", "doc-19", "doc-20", "doc-21"]  # from sha256 by hand
    assert 160 < len(held) < 240
    assert len(split(examples, test=0.0)[1]) == 0 and len(split(examples, test=1.0)[0]) == 0


def test_split_without_group_and_id_uses_the_text() -> None:
    train, held = split([Example(f"text {number}") for number in range(200)], test=0.5)
    assert train and held


def test_split_refuses_shares_outside_0_to_1() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        split([], test=1.5)


slices = st.lists(st.lists(st.integers(1, 400), min_size=30, max_size=150), min_size=1, max_size=4)


@settings(max_examples=80)
@given(slices, st.data(), st.integers(0, 2**32))
def test_mixture_honours_the_shares(data: list[list[int]], draw: st.DataObject, seed: int) -> None:
    lengths = {f"s{number}": values for number, values in enumerate(data)}
    weights = [draw.draw(st.integers(1, 10)) for _ in data]
    shares = {name: weight / sum(weights) for name, weight in zip(lengths, weights, strict=True)}
    tokens = draw.draw(st.integers(1000, 60_000))
    result = mixture(lengths, shares, tokens, seed)
    taken: Counter[str] = Counter()
    for name, index in result.order:
        taken[name] += lengths[name][index]
    assert taken == Counter(result.tokens_per_slice)
    total = sum(taken.values())
    longest = max(max(values) for values in data)
    assert total <= tokens + longest * len(data)
    uses = Counter(result.order)
    assert max(uses.values()) <= MAX_REPEATS
    for name in lengths:
        repeats = taken[name] / sum(lengths[name])
        assert result.repeats_per_slice[name] == pytest.approx(repeats) and repeats <= MAX_REPEATS
        used = [uses[name, index] for index in range(len(lengths[name]))]
        assert max(used) - min(used) <= 1  # nothing comes a second time before everything came once
    if total >= 100 * longest * len(data):  # whole sequences are then fine enough, whatever they are
        for name, share in shares.items():
            assert abs(taken[name] / total - share) <= TOLERANCE
    assert mixture(lengths, shares, tokens, seed) == result


@pytest.mark.parametrize("tokens", [3_000, 20_000, 200_000])
def test_thirty_percent_finance(tokens: int) -> None:
    draw = random.Random(0)
    lengths = {name: [draw.randint(50, 1024) for _ in range(300)] for name in ("finance", "general")}
    result = mixture(lengths, {"finance": 0.3, "general": 0.7}, tokens, seed=1)
    total = sum(result.tokens_per_slice.values())
    assert abs(result.tokens_per_slice["finance"] / total - 0.3) <= 0.001
    assert abs(total - tokens) <= 0.01 * tokens


def test_a_small_slice_repeats_and_then_shrinks_the_total() -> None:
    lengths = {"finance": [100] * 50, "general": [100] * 5000}
    shares = {"finance": 0.3, "general": 0.7}
    assert mixture(lengths, shares, 30_000, 0).repeats_per_slice["finance"] == pytest.approx(1.8)
    result = mixture(lengths, shares, 300_000, 0)
    assert result.repeats_per_slice["finance"] == MAX_REPEATS
    assert sum(result.tokens_per_slice.values()) == pytest.approx(20_000 / 0.3, rel=0.002)
    assert result.tokens_per_slice["finance"] / sum(result.tokens_per_slice.values()) == pytest.approx(0.3, abs=0.002)


def test_the_total_bends_where_sequences_are_coarse() -> None:
    result = mixture({"finance": [1000], "general": [10] * 900}, {"finance": 0.3, "general": 0.7}, 5000, 0)
    assert result.tokens_per_slice == {"finance": 1000, "general": pytest.approx(2333, abs=140)}


def test_mixture_is_shuffled_by_its_seed() -> None:
    lengths = {"a": [10] * 100, "b": [10] * 100}
    one, two = (mixture(lengths, {"a": 0.5, "b": 0.5}, 1000, seed).order for seed in (1, 2))
    assert one != two and [name for name, _ in one] != sorted(name for name, _ in one)


@pytest.mark.parametrize(
    ("lengths", "shares", "reason"),
    [
        ({"a": [1]}, {"a": 0.5}, "add up to 1"),
        ({"a": [1]}, {"a": 1.5, "b": -0.5}, "add up to 1"),
        ({"a": [1]}, {"a": 0.5, "b": 0.5}, "no sequences in slice \\['b'\\]"),
        ({"a": [1, 0]}, {"a": 1.0}, "without tokens"),
    ],
)
def test_mixture_refuses(lengths: dict[str, list[int]], shares: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        mixture(lengths, shares, 100, 0)


def test_a_share_of_zero_needs_no_data() -> None:
    result = mixture({"a": [5, 5]}, {"a": 1.0, "b": 0.0}, 10, 0)
    assert result.tokens_per_slice == {"a": 10, "b": 0} and result.repeats_per_slice["b"] == 0


@given(st.lists(st.integers(1, 64), max_size=300), st.integers(64, 128))
def test_pack_loses_nothing_and_fits(lengths: list[int], size: int) -> None:
    rows = pack(lengths, size)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= size for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    fullness = [sum(lengths[index] for index in row) for row in rows]
    assert sum(fullness) >= len(rows) // 2 * size  # two rows that fit into one are never left apart
    assert pack(lengths, size) == rows


@pytest.mark.parametrize("kind", ["documents", "paragraphs", "mixed"])
def test_pack_wastes_less_than_five_percent(kind: str) -> None:
    draw = random.Random(3)
    documents = [min(1024, max(1, int(draw.lognormvariate(6.2, 1.0)))) for _ in range(1500)]
    paragraphs = [min(1024, max(1, int(draw.lognormvariate(4.0, 0.7)))) for _ in range(1500)]
    lengths = {"documents": documents, "paragraphs": paragraphs, "mixed": documents + paragraphs}[kind]
    assert 1 - sum(lengths) / (1024 * len(pack(lengths, 1024))) < 0.05


def test_pack_keeps_windows_in_order() -> None:
    rows = pack([7] * 5000, 16)
    assert max(row[-1] for row in rows[:1024]) < 2048


@pytest.mark.parametrize("length", [0, 17])
def test_pack_refuses_lengths_that_do_not_fit(length: int) -> None:
    with pytest.raises(ValueError, match=f"sequence 1 has {length} tokens"):
        pack([3, length], 16)
