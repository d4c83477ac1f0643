"""Gradients of a step, computed at once or put together, in single and in half precision."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import get_total_norm as total

from domainkit.fit import Objective, TopTrainer, fit
from domainkit.kinds import Kind, Prepared, classify, lm
from domainkit.learner import Learner
from domainkit.model import precision, trunk
from domainkit.model.base import Base, load_base
from domainkit.model.batch import rows
from domainkit.model.store import Store
from domainkit.model.top import BALANCE, Top, adapt
from domainkit.nets.balance import Balance
from domainkit.spec import Training
from domainkit.steps import Step, Steps, deal
from domainkit.types import Sequence as Tokens
from domainkit.types import UserError

LABELS = ("A", "B", "Z")
CONTEXT = 48
TRAINING = Training(rank=4, alpha=8, learning_rate=2e-3, epochs=2, batch=2, context=CONTEXT, bits=16, save_steps=2)

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Case:
    """A task that leads the steps and two that come along, one of them on some texts; what each counts is learned."""

    base: Base
    kinds: Mapping[str, Kind]
    tasks: Mapping[str, Prepared]
    store: Store

    def top(self, dtype: torch.dtype | None = None) -> Top:
        torch.manual_seed(0)
        heads = {name: kind.head(self.base, self.tasks[name]) for name, kind in self.kinds.items()}
        given: dict[str, nn.Module] = {name: head for name, head in heads.items() if head}
        top = adapt(self.base, given | {BALANCE: Balance(self.kinds)}, layers=2, rank=4, alpha=8)
        draw = torch.Generator().manual_seed(1)
        for value in top.trainable().values():  # LoRA and heads begin at zero, where half of the gradients vanish
            value.data += 0.1 * torch.randn(value.shape, generator=draw)
        return copy.deepcopy(top).to(dtype) if dtype else top  # what does not learn is shared with the base


def documents(count: int, first: int = 0) -> tuple[Tokens, ...]:
    made = []
    for i in range(first, first + count):
        draw = random.Random(i)
        ids = (1, *(draw.randrange(3, 300) for _ in range(draw.randrange(2, 45))))
        made.append(Tokens(ids, 3 * len(ids), f"document {i}", label=LABELS[i % 3]))
    return tuple(made)


def make_case(folder: Path, activations: Path, bits: int, wanted: str = "auto") -> Case:
    base = load_base(folder, bits=bits, precision=wanted)
    every = documents(24)
    tasks = {"read": Prepared(every, ()), "topic": Prepared(every, (), labels=LABELS),
             "some": Prepared(every[::3], (), labels=LABELS)}  # fmt: skip
    kinds: dict[str, Kind] = {"read": lm.Kind("read", lm.Settings())}
    kinds |= {name: classify.Kind(name, classify.Settings()) for name in ("topic", "some")}
    return Case(base, kinds, tasks, trunk.run(base, 2, every, activations, disk_gb=1, dtype="float32"))


@pytest.fixture(scope="module")
def case(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tiny_base, tmp_path_factory.mktemp("activations"), bits=32)


def gradients(case: Case, top: Top, step: Step, each: int) -> dict[str, Tensor]:
    """Of one optimizer step, put together from `each` micro-batches."""
    objective = Objective(top, case.kinds, case.tasks)
    top.zero_grad()
    items = Steps(deal([step], each), case.kinds, case.tasks, case.store, each)
    for item in (items[i] for i in range(each)):
        if item["batches"]:
            objective(**item)["loss"].backward()
    return {name: value.grad.clone() for name, value in top.trainable().items() if value.grad is not None}


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The length of their difference beside that of the gradient."""
    assert a.keys() == b.keys()
    return float(total([a[name] - b[name] for name in b]) / total(list(b.values())))


@given(st.sets(st.integers(0, 23), min_size=2), st.integers(2, 6))
@settings(max_examples=12)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    case: Case, dtype: torch.dtype, limit: float, chosen: set[int], each: int
) -> None:
    """Rows of unequal length; three tasks, two of which have unequal shares of the micro-batches, or none of one;
    micro-batches as one process takes them, or several."""
    every = documents(24)
    step = Step("read", tuple(rows([every[i] for i in sorted(chosen)], CONTEXT)))
    top = case.top(dtype)
    whole, parts = (gradients(case, top, step, number) for number in (1, each))
    assert apart(parts, whole) < limit
    assert ("heads.some.deep.weight" in whole) == any(i % 3 == 0 for i in chosen)


def test_a_mean_of_means_is_told_apart(case: Case) -> None:
    """What averaging unequal micro-batches would give is far from it."""
    step = Step("read", tuple(rows(documents(9), CONTEXT)))
    top = case.top()
    whole = gradients(case, top, step, 1)
    singles = [gradients(case, top, Step("read", (row,)), 1) for row in step.rows]
    lora = [name for name in whole if "lora" in name and all(name in one for one in singles)]
    mean = {name: torch.stack([one[name] for one in singles]).mean(0) for name in lora}
    assert apart(mean, {name: whole[name] for name in lora}) > 1e-2


# Half precision


@pytest.fixture(scope="module")
def half(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A base in float16, which torch computes on a CPU as well, if slowly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "able", lambda: ("float32", "bfloat16", "float16"))
        yield make_case(tiny_base, tmp_path_factory.mktemp("half"), bits=16, wanted="float16")


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[TopTrainer]:
    """Every trainer that was made."""
    made: list[TopTrainer] = []
    real = TopTrainer.__init__

    def init(self: TopTrainer, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(TopTrainer, "__init__", init)
    return made


def train(case: Case, top: Top, folder: Path, *, resume: bool = False,
          progress: Callable[[int, Mapping[str, float]], None] = lambda tokens, logs: None) -> list[float]:  # fmt: skip
    """The losses of a run."""
    fitted = fit(top, case.kinds, case.tasks, case.store, TRAINING, folder=folder, seed=0, resume=resume,
                 progress=progress)  # fmt: skip
    return [row["loss"] for row in fitted.log if row["task"] == "read"]


def values(top: Top) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in top.trainable().items()}


@pytest.mark.parametrize("wanted", ["float16", "bfloat16"])
def test_what_learns_is_float32_and_learns_as_in_single_precision(
    case: Case, half: Case, tiny_base: Path, tmp_path: Path, trainers: list[TopTrainer], wanted: str
) -> None:
    short = half if wanted == "float16" else make_case(tiny_base, tmp_path / "store", bits=16)
    top, exact = short.top(), case.top()
    assert short.base.model.dtype == precision.DTYPES[wanted] and top.scaled == (wanted == "float16")
    assert {value.dtype for value in top.trainable().values()} == {torch.float32}
    losses, expected = train(short, top, tmp_path / "short"), train(case, exact, tmp_path / "exact")
    assert losses == pytest.approx(expected, rel=2e-2)
    start = values(case.top())
    moved, other = ([values(of)[name] - value for name, value in start.items()] for of in (exact, top))
    assert total([a - b for a, b in zip(moved, other, strict=True)]) < 0.3 * total(moved)
    assert [t.scale for t in trainers] == [2.0**16 if wanted == "float16" else 1.0, 1.0]


def test_gradients_too_small_for_float16_come_through_when_the_loss_is_scaled(case: Case, half: Case) -> None:
    """Of a step whose loss is divided by a million: unscaled, they are lost on their way down."""
    step = Step("read", tuple(rows(documents(6), CONTEXT)))
    found = {}
    for name, side, scale in (("exact", case, 1.0), ("plain", half, 1.0), ("scaled", half, 2.0**16)):
        top = side.top()
        given = Steps([step], side.kinds, side.tasks, side.store, 1)[0]
        given["terms"] = {task: count * 1e6 for task, count in given["terms"].items()}
        learner = Learner(Objective(top, side.kinds, side.tasks), top)
        learner.scale = scale
        learner(**given)["loss"].backward()
        found[name] = learner.vectors[0].grad.clone()  # the adapter's
    error = {name: float((found[name] - found["exact"]).norm() / found["exact"].norm()) for name in ("plain", "scaled")}
    assert error["scaled"] < 0.05 and error["plain"] > 5 * error["scaled"], error


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(
    half: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainers: list[TopTrainer]
) -> None:
    """Cut off after it, the run goes on with the scale it had, and ends as one that was not."""
    overflow(monkeypatch)
    top, history = half.top(), []

    def watch(tokens: int, logs: Mapping[str, float]) -> None:
        if "loss" in logs:
            history.append((values(top), trainers[-1].scale, dict(logs)))

    train(half, top, tmp_path / "whole", progress=watch)
    scales = [scale for _, scale, _ in history]
    turns = list(pairwise([2.0**26, *scales]))
    left_out = [now < before for before, now in turns]
    assert left_out[0] and 3 < sum(left_out) < len(left_out) - 3
    assert {now / before for before, now in turns} == {0.5, 1.0}
    assert [logs["grad_norm"] == 0 for *_, logs in history] == left_out
    before = values(half.top())
    for (now, _, logs), out in zip(history, left_out, strict=True):
        same = all(torch.equal(now[name], value) for name, value in before.items())
        assert same == (out or logs["learning_rate"] == 0) and math.isfinite(logs["loss"])
        before = now
    rates = [logs["learning_rate"] for *_, logs in history]
    assert [now == before for before, now in pairwise(rates)] == left_out[:-1]  # it waits for the step
    states = cast(Any, trainers[-1].optimizer).state.values()
    assert max(int(state["step"]) for state in states) == len(scales) - sum(left_out)

    class Crash(Exception):
        pass

    steps = 0

    def crash(tokens: int, logs: Mapping[str, float]) -> None:
        nonlocal steps
        steps += "loss" in logs
        if steps == 5:
            raise Crash

    with pytest.raises(Crash):
        train(half, half.top(), tmp_path / "cut", progress=crash)
    again = half.top()
    train(half, again, tmp_path / "cut", resume=True)
    assert trainers[-1].scale == scales[-1]
    assert all(torch.equal(value, values(top)[name]) for name, value in values(again).items())


def overflow(patch: pytest.MonkeyPatch) -> None:
    """A scale at which every gradient overflows until it has been halved a few times."""
    real = torch.amp.GradScaler
    patch.setattr("domainkit.fit.GradScaler", lambda device: real(device, init_scale=2.0**26))


def test_float16_whose_values_overflow_ends_with_advice(half: Case, tmp_path: Path) -> None:
    top = half.top()
    for name, value in top.trainable().items():
        if "lora_B" in name:
            value.data *= 1e6
    with pytest.raises(UserError, match=r"diverged at step 1 .*or another precision"):
        train(half, top, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", ["bfloat16", "float16"])
def test_a_gpu_learns_in_half_precision_as_in_single(tiny_base: Path, tmp_path: Path, wanted: str) -> None:
    if wanted not in precision.able():
        pytest.skip(f"this GPU has no {wanted}")
    losses = []
    for name in (wanted, "float32"):
        case = make_case(tiny_base, tmp_path / name / "store", bits=4, wanted=name)
        losses.append(train(case, case.top(), tmp_path / name / "run"))
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
