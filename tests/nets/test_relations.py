"""Relations between concepts: the threshold, the mask, each window by itself, every input heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from domainkit.data.pairs import FACTS, Pairs
from domainkit.nets.relations import Relations, adaptive_threshold

WIDTH, DEPTHS = 8, 3
MASK = torch.tensor([[[False, True], [False, False]], [[True, True], [False, True]]])  # of two relations

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def head() -> Relations:
    torch.manual_seed(0)
    return Relations(WIDTH, DEPTHS, MASK, torch.rand(9, FACTS)).eval()


def document(tokens: int, seed: int, labels: Sequence[int] = (0, 1, 0)) -> tuple[Tensor, Pairs]:
    """Random states, concepts named twice each, every pair of them, and random facts and relations."""
    draw = np.random.default_rng(seed)
    count = len(labels)
    starts = [(i % count, i, i + 1 + i % 2) for i in range(1, 2 * count + 1)]
    heads, tails = np.nonzero(~np.eye(count, dtype=bool))
    pairs = Pairs(
        tuple(f"concept {i}" for i in range(count)),
        np.array(labels, dtype=np.int64),
        np.array(starts, dtype=np.int64).reshape(-1, 3),
        np.arange(tokens) // 5,
        tuple((i, i + 7) for i in range(count)),
        heads, tails,
        draw.random((len(heads), FACTS), dtype=np.float32),
        draw.random((len(heads), 2)) < 0.5,
    )  # fmt: skip
    return torch.from_numpy(draw.standard_normal((tokens, WIDTH * DEPTHS), dtype=np.float32)), pairs


def test_windows_of_any_size_each_by_itself(head: Relations) -> None:
    windows = [document(12, 1), document(2000, 2, (1, 0)), document(4, 3, ()), document(9, 4, (0,))]
    states, pairs = zip(*windows, strict=True)
    together = head.probabilities(states, pairs)
    assert [tuple(one.shape) for one in together] == [(6, 2), (2, 2), (0, 2), (0, 2)]
    for one, (own, its) in zip(together, windows, strict=True):
        torch.testing.assert_close(one, head.probabilities([own], [its])[0])
    head.loss(states, pairs).backward()
    assert all(torch.isfinite(one.grad).all() for one in head.parameters() if one.grad is not None)


def test_what_the_mask_rules_out_is_never_likely_and_never_learned(head: Relations) -> None:
    states, pairs = document(12, 1)
    allowed = head.allowed([pairs])
    expected = [[bool(MASK[r, pairs.labels[h], pairs.labels[t]]) for r in range(2)]
                for h, t in zip(pairs.heads, pairs.tails, strict=True)]  # fmt: skip
    assert allowed.tolist() == expected and 0 < allowed.sum() < allowed.numel()
    assert (head.probabilities([states], [pairs])[0] > 0).tolist() == expected
    assert (head.probabilities([states], [pairs], masked=False)[0] > 0).all()
    other = replace(pairs, gold=pairs.gold ^ ~allowed.numpy())  # says something else of all that is ruled out
    torch.testing.assert_close(head.loss([states], [other]), head.loss([states], [pairs]))


@pytest.mark.parametrize("depth", range(DEPTHS))
def test_every_depth_is_read_all_over_the_document(head: Relations, depth: int) -> None:
    states, pairs = document(12, 1)
    changed = states.clone()
    changed[11, depth * WIDTH] += 5  # no mention stands there
    before, after = (head.probabilities([one], [pairs], masked=False)[0] for one in (states, changed))
    assert ((before - after).abs() > 0).all()


@pytest.mark.parametrize("part", ["facts", "kinds", "mentions", "sentences"])
def test_everything_that_is_known_of_a_pair_is_heard(head: Relations, part: str) -> None:
    states, pairs = document(12, 1)
    changes: dict[str, object] = {
        "facts": pairs.facts + 1,
        "kinds": tuple((i + 1,) for i in range(3)),
        "mentions": pairs.mentions + np.array([0, 2, 2]),
        "sentences": np.arange(12) // 3,
    }
    before, after = (
        head.probabilities([states], [one], masked=False)[0]
        for one in (pairs, replace(pairs, **{part: changes[part]}))  # type: ignore[arg-type]
    )
    assert ((before - after).abs() > 0).all()


def test_the_mask_and_the_scale_of_facts_travel_with_the_weights(head: Relations) -> None:
    fresh = Relations(WIDTH, DEPTHS, torch.ones_like(MASK)).eval()
    fresh.load_state_dict(head.state_dict())
    states, pairs = document(12, 1)
    torch.testing.assert_close(fresh.probabilities([states], [pairs])[0], head.probabilities([states], [pairs])[0])


def test_one_relation_beside_a_threshold_is_a_yes_or_no() -> None:
    logits, gold = torch.randn(7, 2), torch.rand(7, 1) < 0.5
    expected = binary_cross_entropy_with_logits(logits[:, 1:] - logits[:, :1], gold.float(), reduction="sum")
    torch.testing.assert_close(adaptive_threshold(logits, gold, torch.ones_like(gold)), expected)


def test_the_threshold_is_learned_between_what_holds_and_what_does_not() -> None:
    gold = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4, [True, False, True, False]])
    allowed = torch.ones_like(gold)
    allowed[3, 2:] = False
    logits = torch.zeros(4, 5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        adaptive_threshold(logits, gold, allowed).backward()
        optimizer.step()
    assert ((logits[:, 1:] > logits[:, :1]) == gold)[allowed].all()
    assert (logits[3, 3:] == 0).all()  # neither pushed up nor down


def test_what_is_learned_is_told(head: Relations) -> None:
    windows = [document(12, seed) for seed in range(4)]
    states, pairs = zip(*windows, strict=True)
    optimizer = torch.optim.AdamW(head.train().parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(states, pairs).backward()
        optimizer.step()
    told = torch.cat(head.eval().probabilities(states, pairs)) > 0.5
    gold = torch.cat([torch.from_numpy(one.gold) for one in pairs]) & head.allowed(pairs)
    assert (told == gold).float().mean() > 0.98
