"""Training survives everything: kills, Ctrl-C, half-written checkpoints, losses that are no numbers."""

from __future__ import annotations

import gc
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from domainkit import checkpoint
from domainkit.fit import Fitted, fit
from domainkit.kinds import Kind, Prepared, classify, lm
from domainkit.model import trunk
from domainkit.model.base import Base, load_base
from domainkit.model.store import Store
from domainkit.model.top import Top, adapt
from domainkit.spec import Training
from domainkit.steps import plan_steps
from domainkit.types import Sequence as Tokens
from domainkit.types import UserError

SEED = 3
LABELS = ("A", "B", "Z")
TRAINING = Training(rank=4, alpha=8, learning_rate=2e-3, epochs=2, batch=2, context=48, bits=32,
                    activations="float32", save_steps=3)  # fmt: skip
Progress = Callable[[int, Mapping[str, float]], None]


@pytest.fixture(scope="module", autouse=True)
def nothing_old_to_collect() -> Iterator[None]:
    """The Trainer collects garbage at its end: 0.4 s each time, unless what was imported before is left alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Case:
    """Everything `fit` needs but the folder."""

    base: Base
    kinds: Mapping[str, Kind]
    tasks: Mapping[str, Prepared]
    store: Store

    def top(self) -> Top:
        torch.manual_seed(SEED)
        head = self.kinds["triage"].head(self.base, self.tasks["triage"])
        assert head is not None
        return adapt(self.base, {"triage": head}, layers=2, rank=TRAINING.rank, alpha=TRAINING.alpha, seed=SEED,
                     adapters=[prepared.adapter for prepared in self.tasks.values()])  # fmt: skip

    def fit(self, folder: Path, *, top: Top | None = None, resume: bool = False, progress: Progress | None = None,
            training: Training = TRAINING, kinds: Mapping[str, Kind] | None = None) -> tuple[Top, Fitted]:  # fmt: skip
        top = top or self.top()
        fitted = fit(top, kinds or self.kinds, self.tasks, self.store, training, folder=folder, seed=SEED,
                     resume=resume, progress=progress or (lambda tokens, logs: None))  # fmt: skip
        return top, fitted


def make_case(base: Path, activations: Path) -> Case:
    loaded = load_base(base, bits=32)
    tasks = {
        "read": Prepared(documents(0, 10), ()),
        "triage": Prepared(documents(50, 9), (), labels=LABELS, adapter="triage"),
    }
    kinds: dict[str, Kind] = {
        "read": lm.Kind("read", lm.Settings()),
        "triage": classify.Kind("triage", classify.Settings()),
    }
    sequences = [s for prepared in tasks.values() for s in prepared.train]
    return Case(loaded, kinds, tasks, trunk.run(loaded, 2, sequences, activations, disk_gb=1, dtype="float32"))


def documents(first: int, count: int) -> tuple[Tokens, ...]:
    made = []
    for i in range(first, first + count):
        draw = random.Random(i)
        ids = (1, *(draw.randrange(3, 300) for _ in range(draw.randrange(5, 40))))
        made.append(Tokens(ids, 3 * len(ids), f"document {i}", label=LABELS[i % 3]))
    return tuple(made)


@pytest.fixture(scope="module")
def case(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tiny_base, tmp_path_factory.mktemp("activations"))


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: its end, and its weights after every step."""

    folder: Path
    weights: dict[str, Tensor]
    log: tuple[Mapping[str, Any], ...]
    history: list[dict[str, Tensor]]
    told: list[int]  # tokens, as the progress callback got them


def copies(top: Top) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in top.trainable().items()}


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    top, folder = case.top(), tmp_path_factory.mktemp("whole")
    history: list[dict[str, Tensor]] = []
    told: list[int] = []

    def watch(tokens: int, logs: Mapping[str, float]) -> None:
        told.append(tokens)
        if "loss" in logs or not logs:
            history.append(copies(top))

    _, fitted = case.fit(folder, top=top, progress=watch)
    return Whole(folder, copies(top), fitted.log, history, told)


def same_end(top: Top, fitted: Fitted, whole: Whole) -> bool:
    """Bit for bit."""
    end = copies(top)
    weights = end.keys() == whole.weights.keys() and all(torch.equal(end[n], v) for n, v in whole.weights.items())
    return weights and fitted.log == whole.log


def at_step(number: int, act: Callable[[], None]) -> Progress:
    steps = 0

    def progress(tokens: int, logs: Mapping[str, float]) -> None:
        nonlocal steps
        steps += "loss" in logs
        if "loss" in logs and steps == number:
            act()

    return progress


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


# The run as it should be


def test_the_run_has_steps_of_both_tasks_and_learns(whole: Whole) -> None:
    assert len(whole.log) >= 10
    assert {row["task"] for row in whole.log} == {"read", "triage"}
    assert [row["step"] for row in whole.log] == list(range(1, len(whole.log) + 1))
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in whole.log)
    assert all(not torch.equal(whole.history[0][name], value) for name, value in whole.weights.items())
    rates = [row["learning_rate"] for row in whole.log]
    assert max(rates) == pytest.approx(2e-3, rel=0.2) and rates[-1] < max(rates) / 3


def test_a_top_that_was_scored_before_learns_all_the_same(case: Case, whole: Whole, tmp_path: Path) -> None:
    """Using one adapter switches the gradients of the others off; training switches them on again."""
    top = case.top()
    top.use("triage")
    assert same_end(*case.fit(tmp_path, top=top), whole)


def test_progress_is_told_every_token_once(case: Case, whole: Whole, tmp_path: Path) -> None:
    every = TRAINING.epochs * sum(len(s.ids) for p in case.tasks.values() for s in p.train)
    assert sum(whole.told) == every
    with pytest.raises(Crash):
        case.fit(tmp_path, progress=at_step(5, crash))
    told: list[int] = []
    case.fit(tmp_path, resume=True, progress=lambda tokens, logs: told.append(tokens))
    assert sum(told) == every  # what was trained before the crash is told at once
    assert told[0] > 0


def test_the_loss_is_the_mean_over_tokens_or_texts(case: Case, whole: Whole) -> None:
    """The first logged loss of each task, computed again without any of the machinery."""
    seen = set()
    for row, step in zip(whole.log, plan_steps(case.tasks, TRAINING, SEED), strict=True):
        assert row["task"] == step.task
        if step.task in seen or not same_weights(whole.history[row["step"] - 1], case.top()):
            continue
        seen.add(step.task)
        assert row["loss"] == pytest.approx(by_hand(case, [s for row in step.rows for s in row], step.task), rel=1e-5)
    assert seen == {"read"} or seen == {"triage"} or len(seen) == 2


def test_accumulated_micro_batches_are_averaged_over_their_tokens(case: Case, tmp_path: Path) -> None:
    """As the Trainer does with a plain model: a half-empty micro-batch counts half."""
    only = replace(case, tasks={"read": case.tasks["read"]})
    training = replace(TRAINING, batch=3, micro_batch=1, epochs=1)
    _, fitted = only.fit(tmp_path, training=training, top=case.top())
    groups = plan_steps(only.tasks, training, SEED)[0].rows
    assert len({sum(len(s.ids) for s in group) for group in groups}) > 1
    expected = by_hand(case, [s for group in groups for s in group], "read")
    assert fitted.log[0]["loss"] == pytest.approx(expected, rel=1e-5)


def same_weights(before: Mapping[str, Tensor], top: Top) -> bool:
    return all(torch.equal(before[name], value) for name, value in copies(top).items())


@torch.no_grad()
def by_hand(case: Case, sequences: list[Tokens], task: str) -> float:
    """Mean loss of the untrained adapter, one document at a time through the whole base."""
    head, losses = case.top().heads["triage"], []
    for s in sequences:
        out = case.base.model(input_ids=torch.tensor([s.ids]), output_hidden_states=True, use_cache=False)
        if task == "read":
            losses.append(
                torch.nn.functional.cross_entropy(out.logits[0, :-1], torch.tensor(s.ids[1:]), reduction="none")
            )
        else:
            states = out.hidden_states[-1][0]
            found = head(states, torch.zeros(len(states), dtype=torch.long), [s.ids])[0]  # log-probabilities
            losses.append(-found[LABELS.index(s.label)][None])
    return float(torch.cat(losses).mean())


def test_nothing_is_pickled_but_the_trainers_own_state(case: Case, whole: Whole) -> None:
    trainers = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert 1 <= len(checkpoints(whole.folder)) <= 2
    for path in whole.folder.rglob("*"):
        if path.is_file() and path.name not in trainers:
            assert path.name in {"model.safetensors", "trainer_state.json", checkpoint.MANIFEST}, path
    last = whole.folder / checkpoints(whole.folder)[-1]
    assert {path.name for path in last.iterdir()} == trainers | {
        "model.safetensors",
        "trainer_state.json",
        checkpoint.MANIFEST,
    }
    assert load_file(last / "model.safetensors").keys() == whole.weights.keys()  # only what learns


# The plan


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.lists(st.integers(1, 30), max_size=12),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(1, 5),
)
@settings(max_examples=80)
def test_every_sequence_once_per_epoch(a: list[int], b: list[int], epochs: int, seed: int, batch: int) -> None:
    tasks = {
        name: Prepared(
            tuple(Tokens((i, *range(n - 1)), n, f"{name} {i}") for i, n in enumerate(lengths)), (), adapter=name
        )
        for name, lengths in (("a", a), ("b", b))
    }
    training = replace(TRAINING, epochs=epochs, context=30, batch=batch)
    steps = plan_steps(tasks, training, seed)
    assert steps == plan_steps(tasks, training, seed)
    every = Counter((name, s.group) for name, prepared in tasks.items() for s in prepared.train)
    seen: Counter[tuple[str, str]] = Counter()
    for step in steps:
        fresh = Counter((step.task, s.group) for row in step.rows for s in row)
        epoch = sum(seen.values()) // sum(every.values())
        seen += fresh
        assert all(seen[key] == epoch + 1 for key in fresh)  # an epoch ends before the next begins
    assert seen == Counter(dict.fromkeys(every, epochs))


def test_epochs_and_seeds_have_orders_of_their_own(case: Case) -> None:
    steps = plan_steps(case.tasks, TRAINING, SEED)
    half = len(steps) // 2
    assert steps[:half] != steps[half:]
    assert steps != plan_steps(case.tasks, TRAINING, SEED + 1)


# Interrupted


@pytest.mark.parametrize("step", [1, 6])
def test_a_crash_and_resume_end_with_the_same_bits(case: Case, whole: Whole, tmp_path: Path, step: int) -> None:
    with pytest.raises(Crash):
        case.fit(tmp_path, progress=at_step(step, crash))
    resumed = []
    top, fitted = case.fit(tmp_path, resume=True, progress=lambda tokens, logs: resumed.append("loss" in logs))
    assert same_end(top, fitted, whole)
    assert sum(resumed) == len(whole.log) - (step - 1) // TRAINING.save_steps * TRAINING.save_steps


def test_two_crashes_with_accumulation_end_with_the_same_bits(case: Case, tmp_path: Path) -> None:
    training = replace(TRAINING, batch=3, micro_batch=2, save_steps=1)
    straight, log = case.fit(tmp_path / "a", training=training)
    for step in (2, 1):
        with pytest.raises(Crash):
            case.fit(tmp_path / "b", training=training, resume=True, progress=at_step(step, crash))
    top, fitted = case.fit(tmp_path / "b", training=training, resume=True)
    assert fitted.log == log.log
    assert same_weights(copies(straight), top)


def test_without_resume_it_starts_again(case: Case, whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    shutil.copytree(next(whole.folder.glob("checkpoint-*")), tmp_path / "checkpoint-999")  # of a longer run
    steps: list[bool] = []
    top, fitted = case.fit(tmp_path, progress=lambda tokens, logs: steps.append("loss" in logs))
    assert sum(steps) == len(whole.log)
    assert same_end(top, fitted, whole)
    assert "checkpoint-999" not in checkpoints(tmp_path)


def test_resuming_a_finished_run_changes_nothing(case: Case, whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    assert same_end(*case.fit(tmp_path, resume=True), whole)


@pytest.mark.parametrize(
    ("harmed", "from_step"), [(("checkpoint-6",), 3), (("checkpoint-3", "checkpoint-6"), 0)], ids=["newest", "all"]
)
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_damaged_checkpoints_cost_steps_but_no_bit(
    case: Case, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str,
    harmed: tuple[str, ...], from_step: int,
) -> None:  # fmt: skip
    with pytest.raises(Crash):
        case.fit(tmp_path, progress=at_step(7, crash))
    assert checkpoints(tmp_path) == ["checkpoint-3", "checkpoint-6"]
    for name in harmed:
        content = bytearray((tmp_path / name / file).read_bytes())
        content[-len(content) // 3] ^= 4
        (tmp_path / name / file).write_bytes(content)
    capsys.readouterr()
    steps: list[bool] = []
    top, fitted = case.fit(tmp_path, resume=True, progress=lambda tokens, logs: steps.append("loss" in logs))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(harmed) and all(f"({file} has changed)" in line for line in lines)
    assert sum(steps) == len(whole.log) - from_step
    assert same_end(top, fitted, whole)


@pytest.mark.parametrize("step", [3, 6])
def test_dying_before_the_last_rename_costs_that_checkpoint_only(
    case: Case, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    move = checkpoint.move

    def die(draft: Path, path: Path) -> None:
        if path.name == f"checkpoint-{step}":
            raise Crash
        move(draft, path)

    monkeypatch.setattr(checkpoint, "move", die)
    with pytest.raises(Crash):
        case.fit(tmp_path)
    monkeypatch.undo()
    assert checkpoints(tmp_path) == ["checkpoint-3"][: step // 3 - 1]
    assert (tmp_path / checkpoint.DRAFT / f"checkpoint-{step}" / checkpoint.MANIFEST).exists()
    assert same_end(*case.fit(tmp_path, resume=True), whole)


@pytest.mark.parametrize("step", [1, 8])
def test_ctrl_c_saves_stops_and_can_be_resumed(case: Case, whole: Whole, tmp_path: Path, step: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        case.fit(tmp_path, progress=at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before
    last = checkpoint.newest(tmp_path)
    assert last is not None and last.name == f"checkpoint-{step + 1}"  # the step it came in was finished
    steps: list[bool] = []
    top, fitted = case.fit(tmp_path, resume=True, progress=lambda tokens, logs: steps.append("loss" in logs))
    assert same_end(top, fitted, whole)
    assert sum(steps) == len(whole.log) - step - 1  # nothing was trained twice


def test_a_second_ctrl_c_stops_at_once(case: Case, whole: Whole, tmp_path: Path) -> None:
    def twice() -> None:
        before = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is before:  # two signals at once may count as one
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # is not slept through

    with pytest.raises(KeyboardInterrupt):
        case.fit(tmp_path, progress=at_step(5, twice))
    assert checkpoints(tmp_path) == ["checkpoint-3"]
    assert same_end(*case.fit(tmp_path, resume=True), whole)


def test_a_kill_at_a_random_moment(whole: Whole, case: Case, tmp_path: Path) -> None:
    """SIGKILL in another process that saves at every step: whatever it was doing, resuming ends with the same bits."""
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace; import torch\n"
        "from tests.test_fit import TRAINING, make_case\n"
        "torch.set_num_threads(1)\n"
        "base, store, folder = map(Path, sys.argv[1:])\n"
        "case = make_case(base, store)\n"
        "case.fit(folder, training=replace(TRAINING, save_steps=1),\n"
        "         progress=lambda tokens, logs: print('step', logs.get('loss'), flush=True))\n"
    )
    wait = random.random()
    command = [sys.executable, "-c", code, str(case.base.path), str(tmp_path / "store"), str(tmp_path / "run")]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = (line for line in process.stdout if line.startswith("step"))  # DeepSpeed, where it is, speaks as well
        for number, _ in enumerate(told):
            if number == int(2 + 5 * wait):  # step 2 has been taken: the checkpoint of step 1 is there
                time.sleep(0.03 * (5 * wait % 1))
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert checkpoints(tmp_path / "run")
    top, fitted = case.fit(tmp_path / "run", resume=True)
    assert same_end(top, fitted, whole), f"killed after {wait}"


# Diverging


@dataclass
class Faulty(lm.Kind):
    """A language model whose loss goes wrong at one call."""

    at: int
    factor: float
    calls: int = 0

    def __post_init__(self) -> None:
        super().__init__("read", lm.Settings())

    def loss(self, top: Top, batch: Any, labels: Any) -> Any:
        found = super().loss(top, batch, labels)
        self.calls += 1
        factor = self.factor if self.calls == self.at else 1.0
        return (found[0] * factor, found[1]) if isinstance(found, tuple) else found * factor


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9], ids=str)
def test_divergence_stops_before_the_step_and_keeps_the_last_good_weights(
    case: Case, whole: Whole, tmp_path: Path, factor: float
) -> None:
    wrong = [row["step"] for row in whole.log if row["task"] == "read"][2]  # the third step of this task
    top = case.top()
    kinds = {**case.kinds, "read": Faulty(at=3, factor=factor)}
    with pytest.raises(UserError) as error:
        case.fit(tmp_path, top=top, kinds=kinds)
    assert f"diverged at step {wrong} " in str(error.value)
    assert "task read" in str(error.value) and "learning_rate" in error.value.instead
    (kept,) = tmp_path.rglob("last-good")
    assert str(kept) in str(error.value)
    good, expected = load_file(kept / "model.safetensors"), whole.history[wrong - 1]
    assert good.keys() == expected.keys()
    assert all(torch.equal(good[name], value) for name, value in expected.items())
    assert same_weights(expected, top)
    if math.isnan(factor):  # mended, it goes on from the checkpoint
        assert same_end(*case.fit(tmp_path, resume=True), whole)


def test_a_poisoned_activation_stops_the_run(case: Case, tmp_path: Path) -> None:
    class Poisoned:
        def get(self, digest: str) -> np.ndarray:
            values = np.array(case.store.get(digest))
            if digest == case.tasks["triage"].train[4].digest:
                values[0, 0] = np.nan
            return values

    poisoned: Any = Poisoned()
    with pytest.raises(UserError, match=r"task triage.*diverged at step \d+ .loss nan"):
        replace(case, store=poisoned).fit(tmp_path)
    (kept,) = tmp_path.rglob("last-good")
    assert all(torch.isfinite(value).all() for value in load_file(kept / "model.safetensors").values())


# What does not fit


def test_a_checkpoint_of_another_shape_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        case.fit(tmp_path, progress=at_step(4, crash))
    other = adapt(case.base, dict(case.top().heads), layers=2, rank=8, alpha=8, adapters=["triage"])
    with pytest.raises(UserError, match=r"56 weights do not match, first .*lora_A"):
        case.fit(tmp_path, top=other, resume=True)


def test_a_fault_that_is_no_full_disk_is_not_called_one(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("torch.save", fault)
    with pytest.raises(RuntimeError, match="out of luck"):
        case.fit(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_disk_that_takes_no_more_is_one_clear_error(case: Case, whole: Whole, tmp_path: Path, name: str) -> None:
    """Step 5 on, files stay below the size of this one: safetensors and torch both have their own errors for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (whole.folder / checkpoints(whole.folder)[-1] / name).stat().st_size

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 4096, hard))

    try:
        with pytest.raises(UserError, match=r"cannot write|disk is full"):
            case.fit(tmp_path, progress=at_step(5, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-3"
    assert same_end(*case.fit(tmp_path, resume=True), whole)
