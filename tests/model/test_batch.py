"""Packing: what shares a row shares nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domainkit.model.base import load_base
from domainkit.model.batch import Batch, Row, batches, collate, rows
from domainkit.model.split import Trunk
from domainkit.model.top import Top, adapt
from domainkit.model.trunk import forward
from domainkit.types import Sequence as Tokens
from tests.tiny import FAMILIES, make_base

WIDTH = 64


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[(f, "sdpa") for f in FAMILIES] + [("llama", "eager")], ids=str)
def top(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Top:
    """A top whose adapter is not zero."""
    family, attention = request.param
    base = load_base(make_base(tmp_path_factory.mktemp(family), family), bits=32, attention=attention)
    made = adapt(base, {}, layers=2, rank=4).eval()
    with torch.no_grad():
        for value in made.trainable().values():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    return made


def tokens(seed: int, length: int) -> Tokens:
    return Tokens((1, *np.random.default_rng(seed).integers(3, 300, length - 1).tolist()), length, f"document {seed}")


def activations(digest: str) -> np.ndarray:
    """Made-up activations that depend on the sequence alone: the digest seeds them, `LENGTH` sizes them."""
    return np.random.default_rng(int(digest[:8], 16)).normal(size=(LENGTH[digest], WIDTH)).astype(np.float32)


LENGTH: dict[str, int] = {}


def documents(lengths: Sequence[int], seed: int = 0) -> list[Tokens]:
    made = [tokens(seed + i, length) for i, length in enumerate(lengths)]
    LENGTH.update({s.digest: len(s.ids) for s in made})
    return made


def packed(*rows: Row) -> Batch:
    return collate(rows, activations)


@torch.no_grad()
def states(top: Top, batch: Batch) -> list[torch.Tensor]:
    """Last hidden states of each sequence of a batch."""
    found, owner = batch.states(top.states(batch))
    return [found[owner == i] for i in range(len(batch.placed))]


def test_a_packed_sequence_is_what_it_is_alone(top: Top) -> None:
    """Neither its neighbours nor padding nor its place in the row matter."""
    a, b, c, d, e = documents([9, 13, 1, 6, 2])
    together = states(top, packed((a, b, c), (d,), (e, d)))
    alone = [states(top, packed((s,)))[0] for s in (a, b, c, d, e, d)]
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_another_document_in_the_row_leaves_the_others_unchanged(top: Top) -> None:
    a, b, c, other = documents([7, 11, 8, 11])
    before, after = (states(top, packed((a, middle, c))) for middle in (b, other))
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    torch.testing.assert_close(after[2], before[2], rtol=1e-5, atol=1e-6)
    assert (after[1] - before[1]).abs().max() > 0.1


def test_without_restarting_positions_documents_would_see_each_other(top: Top) -> None:
    """The check above can fail: with one run of positions over the row it does."""
    a, b, c, other = documents([7, 11, 8, 11])
    leaked = []
    for middle in (b, other):
        batch = packed((a, middle, c))
        positions = torch.arange(batch.hidden.shape[1])[None]
        leaked.append(states(top, Batch(batch.hidden, positions, batch.placed))[2])
    assert (leaked[1] - leaked[0]).abs().max() > 0.01


def test_gradients_stay_inside_their_document(top: Top) -> None:
    a, b, c = documents([5, 6, 7])
    batch = packed((a, b), (c,))
    batch.hidden.requires_grad_()
    found, owner = batch.states(top.states(batch))
    found[owner == 1].square().sum().backward()
    grad = batch.hidden.grad
    assert grad is not None
    touched = grad.abs().sum(-1) > 0  # (rows, tokens)
    assert touched[0].tolist() == [False] * 5 + [True] * 6
    assert not touched[1].any()


def test_the_whole_model_on_packed_ids_agrees(tmp_path: Path) -> None:
    """What a plain user gets with the same position ids, trunk included."""
    base = load_base(make_base(tmp_path), bits=32)
    made = adapt(base, {}, layers=2).eval()
    one, two = documents([8, 12])
    values = {s.digest: v for s, v in zip((one, two), forward(Trunk(base, 2), [one, two]), strict=True)}
    batch = collate([(one, two)], values.__getitem__)
    with torch.no_grad():
        whole = base.model.base_model(
            input_ids=torch.tensor([one.ids + two.ids]), position_ids=batch.position_ids, use_cache=False
        )
        torch.testing.assert_close(made.states(batch), whole.last_hidden_state[0], rtol=1e-4, atol=1e-5)


lengths = st.lists(st.integers(1, 24), min_size=1, max_size=25)


@given(lengths, st.integers(24, 60), st.integers(1, 200), st.none() | st.integers(0, 9))
@settings(max_examples=150)
def test_every_sequence_is_in_one_row_that_fits(sizes: list[int], row: int, batch: int, seed: int | None) -> None:
    made = documents(sizes)
    twice = [*made, made[0]]  # a repeated sequence is trained twice
    found = batches(twice, row_tokens=row, batch_tokens=batch, seed=seed)
    flat = [s.digest for rows in found for r in rows for s in r]
    assert sorted(flat) == sorted(s.digest for s in twice)
    assert all(sum(len(s.ids) for s in r) <= row for rows in found for r in rows)
    assert all(len(rows) <= max(1, batch // row) for rows in found)
    assert found == batches(twice, row_tokens=row, batch_tokens=batch, seed=seed)
    if seed is None:
        assert [r for rows_ in found for r in rows_] == rows(twice, row)


def test_the_seed_decides_the_order() -> None:
    made = documents([5] * 40)
    first, second, again = (batches(made, row_tokens=20, batch_tokens=40, seed=seed) for seed in (1, 2, 1))
    assert first == again != second


@given(st.lists(lengths, min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=100)
def test_every_activation_lies_where_the_batch_says(sizes: list[list[int]], seed: int) -> None:
    made = [tuple(documents(row, seed + 100 * i)) for i, row in enumerate(sizes)]
    batch = packed(*made)
    flat, positions = batch.hidden.flatten(0, 1), batch.position_ids.flatten()
    assert [s for _, s in batch.placed] == [s for row in made for s in row]
    assert batch.hidden.shape == (len(made), max(map(sum, sizes)), WIDTH)
    free = torch.ones(len(flat), dtype=torch.bool)
    for start, s in batch.placed:
        inside = slice(start, start + len(s.ids))
        np.testing.assert_array_equal(flat[inside].numpy(), activations(s.digest))
        assert positions[inside].tolist() == list(range(len(s.ids)))
        assert free[inside].all()  # nobody else lies here
        free[inside] = False
    assert not flat[free].any()
    for row, line in zip(made, batch.position_ids, strict=True):
        padding = line[sum(len(s.ids) for s in row) :]
        assert padding.tolist() == list(range(len(padding)))  # a document of its own, seen by nobody


@pytest.mark.parametrize("drop_last", [False, True])
@given(sizes=st.lists(lengths, min_size=1, max_size=3))
@settings(max_examples=60)
def test_states_come_with_their_owner(drop_last: bool, sizes: list[list[int]]) -> None:
    batch = packed(*(tuple(documents(row, 100 * i)) for i, row in enumerate(sizes)))
    index = torch.arange(batch.hidden[..., 0].numel())[:, None]  # each "state" is its own place
    found, owner = batch.states(index, drop_last=drop_last)
    expected = [
        (start + i, number)
        for number, (start, s) in enumerate(batch.placed)
        for i in range(len(s.ids) - drop_last)
    ]  # fmt: skip
    assert list(zip(found[:, 0].tolist(), owner.tolist(), strict=True)) == expected


def test_half_precision_on_disk_is_trained_in_single() -> None:
    (one,) = documents([4])
    half = activations(one.digest).astype(np.float16)
    batch = collate([(one,)], lambda _: half)
    assert batch.hidden.dtype == torch.float32
    np.testing.assert_array_equal(batch.hidden[0].numpy(), half.astype(np.float32))


def test_both_ways_a_token_sees_all_of_its_sequence_and_nothing_else(top: Top) -> None:
    own, other, longer = tokens(1, 9), tokens(2, 12), tokens(3, 30)
    LENGTH.update({s.digest: len(s.ids) for s in (own, other, longer)})
    packed, alone = collate([(own, other), (longer,)], activations), collate([(own,)], activations)
    with torch.no_grad():
        there, here = (top.states(batch, both_ways=True)[:9] for batch in (packed, alone))
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
        changed = alone.hidden.clone()
        changed[0, 8] += 1.0  # the last token
        later = Batch(changed, alone.position_ids, alone.placed)
        assert (top.states(later, both_ways=True)[0] - here[0]).abs().max() > 1e-4
        before, after = (top.states(batch)[:8] for batch in (alone, later))
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)  # experts meet tokens in other groups


def test_only_the_last_width_enters_the_top(top: Top) -> None:
    s = tokens(4, 11)
    LENGTH[s.digest] = 11
    plain = collate([(s,)], activations)
    deep = Batch(torch.cat([torch.randn(1, 11, WIDTH), plain.hidden], -1), plain.position_ids, plain.placed)
    with torch.no_grad():
        assert torch.equal(top.states(deep), top.states(plain))
        found = top.depths(deep)
        assert found.shape == (11, 3 * WIDTH)
        scaled = Batch(deep.hidden * torch.tensor([5.0] * WIDTH + [1.0] * WIDTH), deep.position_ids, deep.placed)
        torch.testing.assert_close(top.depths(scaled), found, atol=1e-4, rtol=1e-4)  # of each depth, how it is made
