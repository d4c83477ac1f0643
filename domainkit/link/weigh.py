"""How much each kind of evidence weighs: a conditional logit, fitted so that the right candidate comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RIDGE = 2.0  # L2 penalty on the weights of standardised evidence


@dataclass(frozen=True)
class Choice:
    """The candidates of one mention, the last of which is that none fits."""

    evidence: np.ndarray  # (candidates, features)
    right: np.ndarray  # (candidates,), bool; at least one is
    weight: float = 1.0


def fit(choices: Sequence[Choice]) -> np.ndarray:
    """The weights under which the right candidates are likeliest: (features,).

    The probability of a candidate is the softmax of its weighted evidence over the candidates of its mention.
    Source: McFadden 1974, "Conditional logit analysis of qualitative choice behavior".
    """
    from scipy.optimize import minimize

    evidence = np.concatenate([choice.evidence for choice in choices]).astype(np.float64)
    scale = np.maximum(evidence.std(0), 1e-3)
    evidence /= scale
    right = np.concatenate([choice.right for choice in choices])
    sizes = [len(choice.right) for choice in choices]
    starts, owner = np.cumsum([0, *sizes[:-1]]), np.repeat(np.arange(len(choices)), sizes)
    weight = np.array([choice.weight for choice in choices])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log-likelihood with its penalty, and the gradient."""
        logits = evidence @ weights
        grown = np.exp(logits - np.maximum.reduceat(logits, starts)[owner])
        every, good = np.add.reduceat(grown, starts), np.add.reduceat(grown * right, starts) + 1e-300
        pull = grown * (1 / every[owner] - right / good[owner]) * weight[owner]
        lost = weight @ (np.log(every) - np.log(good)) + 0.5 * RIDGE * weights @ weights
        return float(lost), evidence.T @ pull + RIDGE * weights

    found = minimize(loss, np.zeros(evidence.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x / scale


def likelihood(evidence: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The probability of each candidate of one mention: (candidates, features) → (candidates,)."""
    logits = evidence @ weights
    grown = np.exp(logits - logits.max())
    return grown / grown.sum()


def threshold(best: np.ndarray, right: np.ndarray, linkable: np.ndarray) -> float:
    """The probability below which the best candidate is better not taken.

    best: probability of each mention's best candidate; right: whether that one is right; linkable: whether the mention
    has a concept at all. Of the values under which the most mentions are treated rightly it is the middle of the
    greatest, so that what comes out a little less probable than its like is not lost.
    """
    values = np.unique(np.concatenate([[0.0], best]))
    gain = [int((right & (best >= value)).sum() + (~linkable & (best < value)).sum()) for value in values]
    best_at = len(gain) - 1 - int(np.argmax(gain[::-1]))
    return float(values[max(best_at - 1, 0)] + values[best_at]) / 2
