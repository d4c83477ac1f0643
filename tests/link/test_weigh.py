"""The conditional logit: against a solution in closed form, a numerical gradient, and its own promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.link.weigh import RIDGE, Choice, fit, likelihood, threshold


def two(count: int, right: int) -> list[Choice]:
    """Mentions with one candidate that has evidence 1 and none; the candidate is right `right` times."""
    evidence = np.array([[1.0], [0.0]])
    return [Choice(evidence, np.array([i < right, i >= right])) for i in range(count)]


def test_fit_finds_the_solution_of_one_weight() -> None:
    (weight,) = fit(two(10_000, 7_500))
    assert weight == pytest.approx(np.log(3), abs=0.01)  # σ(w) = 3/4, but for the penalty
    assert fit(two(10, 5)) == pytest.approx([0.0], abs=1e-6)


def test_a_weight_counts_as_that_many_mentions() -> None:
    evidence = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    right = [np.array([True, False, False]), np.array([False, True, False])]
    told = fit([Choice(evidence, right[0], 3.0), Choice(evidence, right[1])])
    repeated = fit([Choice(evidence, right[0])] * 3 + [Choice(evidence, right[1])])
    assert told == pytest.approx(repeated, abs=1e-4)


def test_fit_is_at_the_minimum() -> None:
    """The penalised likelihood, written out plainly, does not fall in any direction."""
    random = np.random.default_rng(0)
    choices = []
    for size in random.integers(2, 6, 40):
        right = np.zeros(size, bool)
        right[random.choice(size, random.integers(1, size), replace=False)] = True
        choices.append(Choice(random.normal(size=(size, 3)), right, float(random.uniform(0.5, 2))))
    scale = np.concatenate([choice.evidence for choice in choices]).std(0)

    def lost(weights: np.ndarray) -> float:
        gains = [c.weight * np.log(likelihood(c.evidence, weights)[c.right].sum()) for c in choices]
        return float(0.5 * RIDGE * ((weights * scale) ** 2).sum() - sum(gains))

    best = fit(choices)
    for axis in np.eye(3) * 1e-4:
        assert abs(lost(best + axis) - lost(best - axis)) / 2e-4 < 0.02


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=5))
def test_likelihood_is_a_distribution(rows: list[tuple[float, float]]) -> None:
    evidence = np.array(rows)
    found = likelihood(evidence, np.array([10.0, -10.0]))
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    assert found[(evidence @ [10.0, -10.0]).argmax()] == found.max()


def test_threshold_leaves_out_what_is_mostly_wrong() -> None:
    best = np.array([0.1, 0.2, 0.3, 0.8, 0.9])
    right = np.array([False, False, True, True, True])
    assert threshold(best, right, np.array([False, False, True, True, True])) == 0.25
    assert threshold(best, right, np.ones(5, bool)) == 0.25  # nothing is lost with what is wrong anyway
    assert threshold(best, np.ones(5, bool), np.ones(5, bool)) == 0.05
    assert threshold(np.array([]), np.array([], bool), np.array([], bool)) == 0.0
    assert threshold(np.array([0.0, 0.9]), np.array([False, True]), np.array([False, True])) == 0.45
