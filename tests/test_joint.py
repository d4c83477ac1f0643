"""Tasks that share steps: which they are, and that sharing changes no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from domainkit.fit import Objective
from domainkit.joint import companions, epochs_of, trained_tokens
from domainkit.kinds import Kind, Prepared, ner
from domainkit.model import bundle, trunk
from domainkit.model.base import Base, load_base
from domainkit.model.top import BALANCE, Top, adapt
from domainkit.nets.balance import Balance
from domainkit.spec import Training
from domainkit.steps import Steps, plan_steps
from domainkit.types import Sequence as Tokens
from tests.kinds.test_ner import CONTEXT, DOCUMENTS, corpus, kind

TRAINING = Training(epochs=2, context=CONTEXT, batch=2)

pytestmark = pytest.mark.usefixtures("one_thread")


def prepared(*ids: int, adapter: str = "reader", epochs: int = 0) -> Prepared:
    return Prepared(tuple(Tokens((1, i), 2, f"document {i}") for i in ids), (), adapter=adapter, epochs=epochs)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ({"ner": prepared(1, 2, 3), "relation": prepared(3, 1)}, {"ner": ("relation",)}),
        ({"a": prepared(1), "ner": prepared(1, 2, 3), "relation": prepared(3, 1)}, {"ner": ("relation", "a")}),
        ({"ner": prepared(1, 2), "note": prepared(3)}, {"ner": (), "note": ()}),  # other text
        ({"ner": prepared(1, 2), "relation": prepared(2, 3)}, {"ner": (), "relation": ()}),  # some of it
        ({"ner": prepared(1, 2), "title": prepared(1, adapter="title")}, {"ner": (), "title": ()}),
        ({"ner": prepared(1, 2), "twice": prepared(1, 1)}, {"ner": (), "twice": ()}),
        ({"ner": prepared(1, 2), "solved": prepared()}, {"ner": (), "solved": ()}),
    ],
)
def test_who_comes_along(tasks: Mapping[str, Prepared], expected: Mapping[str, tuple[str, ...]]) -> None:
    assert companions(tasks) == expected


def test_a_task_with_fewer_epochs_learns_from_the_first_of_the_run_to_the_last() -> None:
    tasks = {"ner": prepared(1, 2), "note": prepared(7, epochs=1), "all": prepared(8, epochs=9)}
    assert [epochs_of(p, TRAINING) for p in tasks.values()] == [2, 1, 2]
    assert trained_tokens(tasks, TRAINING) == {"all": 4, "ner": 8, "note": 2}
    tasks |= {"note": prepared(*range(10, 16), epochs=2)}
    steps = plan_steps(tasks, replace(TRAINING, epochs=4, context=2, batch=1), 0)
    times = [i for i, step in enumerate(steps) if step.task == "note"]
    assert [sum(len(steps) * k <= 4 * i < len(steps) * (k + 1) for i in times) for k in range(4)] == [3, 3, 3, 3]
    first, second = ({s.ids[1] for i in half for row in steps[i].rows for s in row} for half in (times[:6], times[6:]))
    assert first == second == set(range(10, 16))  # one epoch after the other


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, bits=32)


def gradients(
    top: Top, kinds: Mapping[str, Kind], tasks: Mapping[str, Prepared], store: trunk.Store
) -> list[torch.Tensor]:
    """Of the first epoch's loss, summed over its steps."""
    steps = plan_steps(tasks, replace(TRAINING, epochs=1), 0)
    items, objective = Steps(steps, kinds, tasks, store, 1), Objective(top, kinds, tasks).eval()  # eval: no dropout
    sum(objective(**items[i])["loss"] for i in range(len(items))).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in top.trainable().values()]
    top.zero_grad()
    return found


def test_a_shared_step_has_the_gradients_of_both(base: Base, tmp_path: Path) -> None:
    kinds: dict[str, Kind] = {"ner": kind(), "drugs": ner.Kind("drugs", ner.Settings(labels=("Chemical",)))}
    tasks = {name: replace(one.prepare(corpus(DOCUMENTS[:6], DOCUMENTS[6:]), base), adapter="reader")
             for name, one in kinds.items()}  # fmt: skip
    store = trunk.run(base, 2, tasks["ner"].train, tmp_path, disk_gb=1, dtype="float32")
    torch.manual_seed(0)
    heads = bundle.heads_of({name: one.head(base, tasks[name]) for name, one in kinds.items()})
    top = adapt(base, heads, layers=2, rank=4, adapters=["reader"])
    assert companions(tasks) == {"drugs": ("ner",)}
    together = gradients(top, kinds, tasks, store)
    apart = [gradients(top, kinds, {name: tasks[name]}, store) for name in tasks]
    for both, *single in zip(together, *apart, strict=True):
        assert torch.allclose(both, single[0] + single[1], atol=1e-4)
    assert any(both.abs().max() > 0 for both in together)


def test_learned_weights_scale_each_loss(base: Base, tmp_path: Path) -> None:
    only: dict[str, Kind] = {"ner": kind()}
    tasks = {"ner": replace(only["ner"].prepare(corpus(DOCUMENTS[:6], DOCUMENTS[6:]), base), adapter="reader")}
    store = trunk.run(base, 2, tasks["ner"].train, tmp_path, disk_gb=1, dtype="float32")
    balance = Balance(["ner"])
    torch.manual_seed(0)
    heads = bundle.heads_of({"ner": only["ner"].head(base, tasks["ner"])})
    top = adapt(base, {**heads, BALANCE: balance}, layers=2, rank=4, adapters=["reader"])
    items = Steps(plan_steps(tasks, TRAINING, 0), only, tasks, store, 1)
    objective = Objective(top, only, tasks).eval()
    with torch.no_grad():
        plain = float(objective(**items[0])["loss"])
        balance.logs["ner"].fill_(0.02)
        assert float(objective(**items[0])["loss"]) == pytest.approx(plain * balance.weights()["ner"] + 0.6, rel=1e-4)
    assert objective.told["ner"] == pytest.approx(2 * plain, rel=1e-4)  # what is logged is not weighed
