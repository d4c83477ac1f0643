"""Weights of losses: where they settle, and that no task can win by counting less."""

from __future__ import annotations

import pytest
import torch

from domainkit.nets.balance import Balance


def test_tasks_begin_alike() -> None:
    balance = Balance(["ner", "relation"])
    assert balance.weights() == {"ner": 1.0, "relation": 1.0}
    assert balance("ner", torch.tensor(0.7)).item() == pytest.approx(0.7)


def test_a_weight_settles_at_one_over_its_loss() -> None:
    """Where loss / variance + log variance is least, the variance is the loss (Kendall et al. 2018)."""
    balance = Balance(["ner", "relation"])
    optimizer = torch.optim.AdamW(balance.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(600):
        sum(balance(task, torch.tensor(loss)) for task, loss in (("ner", 0.05), ("relation", 2.0))).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert balance.weights() == {"ner": pytest.approx(20, rel=0.1), "relation": pytest.approx(0.5, rel=0.1)}


def test_the_gradient_of_a_loss_is_scaled_by_its_weight() -> None:
    balance, weight = Balance(["ner"]), torch.tensor(3.0, requires_grad=True)
    with torch.no_grad():
        balance.logs["ner"].fill_(0.02)
    balance("ner", weight * 2).backward()
    assert weight.grad is not None and weight.grad.item() == pytest.approx(2 * balance.weights()["ner"])
