"""Two processes under torchrun train what one does: the same losses, the same weights, cut off or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from domainkit import cli, ranks
from domainkit.claim import LOCK
from domainkit.claim import alone as alone_in
from domainkit.engines import Engine, accumulation, engine
from domainkit.fit import Fitted
from domainkit.model import bundle, trunk
from domainkit.steps import Step, deal
from domainkit.types import Sequence as Tokens
from domainkit.types import UserError
from tests.ranked import SHARD
from tests.test_fit import TRAINING, Case, copies, make_case
from tests.test_recipes import make_desk, snapshot

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy" / "distributed"
STEPS = replace(TRAINING, batch=3, micro_batch=1, epochs=4)  # two rows for one process, one for the other

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Alone:
    """The run of one process, which all others are held against."""

    case: Case
    weights: dict[str, Tensor]
    fitted: Fitted


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    case = make_case(tiny_base, folder / "store")
    top, fitted = case.fit(folder / "run", training=STEPS)
    return Alone(case, copies(top), fitted)


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    yield monkeypatch


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


def check(alone: Alone, out: Path, names: Sequence[str], **more: object) -> None:
    """Every run that was told of in `out` is that of one process."""
    settings = {"batch": STEPS.batch, "micro_batch": STEPS.micro_batch, "epochs": STEPS.epochs, **more}
    given = [f"{key}={value}" for key, value in settings.items()]
    store = alone.case.store.folder.parent
    ended = torchrun("-m", "tests.ranked", str(alone.case.base.path), str(store), str(out), *given)
    assert ended.returncode == 0, ended.stderr[-6000:]
    for name in names:
        log, weights = json.loads((out / f"{name}.json").read_text()), load_file(out / f"{name}.safetensors")
        assert [(row["step"], row["task"]) for row in log] == [(row["step"], row["task"]) for row in alone.fitted.log]
        for row, expected in zip(log, alone.fitted.log, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5), (name, row["step"])
            assert row["learning_rate"] == expected["learning_rate"]
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4), (name, row["step"])
        assert weights.keys() == alone.weights.keys()
        for key, value in alone.weights.items():
            assert weights[key].shape == value.shape
            assert float((weights[key] - value).abs().max()) < 1e-5, (name, key)


def test_two_processes_train_what_one_does(alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step one process may have more to do than the other. They share the trunk's pass."""
    check(alone, tmp_path, ["whole", "crashed", "interrupted"])
    for name in ("SHARD", "BATCH"):
        monkeypatch.setattr(trunk, name, SHARD)
    sequences = [s for prepared in alone.case.tasks.values() for s in prepared.train]
    trunk.run(alone.case.base, 2, sequences, tmp_path / "alone", disk_gb=1, dtype="float32")
    assert snapshot(tmp_path / "alone") == snapshot(tmp_path / "shared")
    assert len(list((tmp_path / "shared").rglob("*.safetensors"))) > 3


@pytest.mark.slow
def test_fsdp2_trains_what_one_process_does(alone: Alone, tmp_path: Path) -> None:
    check(alone, tmp_path, ["whole", "crashed"], fsdp=DEPLOY / "fsdp2.json")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed: pip install 'domainkit[deepspeed]'")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_what_one_process_does(alone: Alone, tmp_path: Path, stage: int) -> None:
    check(alone, tmp_path, ["whole", "crashed"], deepspeed=DEPLOY / f"zero{stage}.json")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed: pip install 'domainkit[deepspeed]'")
def test_deepspeed_keeps_stdout_clean() -> None:
    """accelerate imports it in every run, whichever engine trains."""
    code = "import domainkit.engines; from deepspeed import DeepSpeedEngine; print('{}')"
    environment = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                           timeout=300)  # fmt: skip
    assert ended.returncode == 0 and ended.stdout == "{}\n", ended.stdout + ended.stderr[-3000:]


# Whole stories


@pytest.mark.slow
def test_a_run_folder_as_one_process_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its activations too, which the processes share; only the first one writes the run, and speaks."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    settings = ("batch=2", "bits=32", "activations=float32")
    desk = make_desk(tmp_path, overrides=settings)
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache of two"))
    line = desk.line(tmp_path / "two", *(word for setting in settings for word in ("--set", setting)))
    ended = torchrun("-m", "domainkit", *line)
    assert ended.returncode == 0, ended.stderr[-6000:]
    reports = tmp_path / "two" / "reports"
    assert ended.stdout == f"adapter: {reports.parent}\nreport:  {reports / 'index.html'}\n"
    assert ended.stderr.count("evaluating on held-out data") == 1
    caches = [snapshot(tmp_path / name / "activations") for name in ("cache", "cache of two")]
    assert caches[0] == caches[1] and caches[0]
    one, two = bundle.read(desk.run), bundle.read(tmp_path / "two")
    assert (one.processes, two.processes) == (1, 2) and one.sha256.keys() == two.sha256.keys()
    for name in one.sha256:
        if name.endswith(".safetensors"):
            alone, shared = load_file(desk.run / name), load_file(tmp_path / "two" / name)
            assert all(float((shared[key] - value).abs().max()) < 1e-4 for key, value in alone.items()), name
    for task in one.tasks:
        scores = [json.loads((run / "reports" / f"{task}.json").read_text()) for run in (desk.run, tmp_path / "two")]
        assert scores[0]["examples"] == scores[1]["examples"]
    left = {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert left == {path.relative_to(desk.run) for path in desk.run.rglob("*") if path.is_file()}
    again = torchrun("-m", "domainkit", *line, "--resume")  # there is nothing left to do, for either of them
    assert again.returncode == 0 and "is finished already" in again.stderr, again.stderr[-3000:]


def test_an_evaluation_as_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its activations are new, and shared."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    desk = make_desk(tmp_path, overrides=("bits=32",))
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "another cache"))
    line = ("eval", str(desk.domain), "--run", str(desk.run), "--out", str(tmp_path / "two"))
    ended = torchrun("-m", "--", "domainkit", *line)  # torchrun has options that begin with --run
    assert ended.returncode == 0 and ended.stdout.count("report: ") == 1, ended.stderr[-3000:]
    for task in bundle.read(desk.run).tasks:
        one, two = (json.loads((at / f"{task}.json").read_text()) for at in (desk.run / "reports", tmp_path / "two"))
        assert one["examples"] == two["examples"] and one["scores"].keys() == two["scores"].keys()
        assert all(two["scores"][name] == pytest.approx(score, rel=1e-5) for name, score in one["scores"].items())


def test_a_fault_of_one_ends_all(tmp_path: Path) -> None:
    """The first process refuses; nobody waits for it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "domainkit.json").write_text("{}")
    ended = torchrun("-m", "domainkit", "finetune", "finance", "--out", str(tmp_path / "run"),
                     "--batch", "2")  # fmt: skip
    assert ended.returncode == 1 and f"error: {tmp_path / 'run'}: holds a finished run" in ended.stderr


def test_only_the_first_process_asks_for_the_run_folder(of: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        with pytest.raises(UserError, match="another process works on this run"), alone_in(tmp_path / "run"):
            pass
        of.setenv("RANK", "1")
        with alone_in(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / LOCK).exists()
        of.setenv("RANK", "0")
    assert not (tmp_path / "run").exists()


def test_only_training_is_for_several_processes(
    of: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    of.setattr(sys, "argv", ["domainkit", "base", "list"])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr().err
    assert "torchrun: only `finetune` and `eval` are for several processes; instead: domainkit base list" in told


# The plan


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 9), st.integers(1, 9))
def test_every_row_falls_to_one_process_in_its_own_step(sizes: list[int], micro: int, processes: int) -> None:
    training = replace(TRAINING, batch=max(sizes), micro_batch=micro)
    steps = [Step(f"task {i}", tuple((Tokens((i, j), 2, str(i)),) for j in range(n))) for i, n in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", processes)):
            patch.setenv(name, str(value))
        own = accumulation(training)
    dealt = deal(steps, own * processes)
    assert len(dealt) == len(steps) * own * processes
    assert max(len(step.rows) for step in dealt) <= (micro or max(sizes))
    shares = [dealt[rank::processes] for rank in range(processes)]  # as the Trainer's sampler deals
    for i, step in enumerate(steps):
        taken = [one for share in shares for one in share[i * own : (i + 1) * own]]
        assert {one.task for one in taken} == {step.task}
        assert sorted(row[0].ids for one in taken for row in one.rows) == [row[0].ids for row in step.rows]
        loads = [sum(len(one.rows) for one in share[i * own : (i + 1) * own]) for share in shares]
        assert max(loads) - min(loads) <= own


# What is refused


def refused(training: object) -> str:
    with pytest.raises(UserError) as error:
        engine(training)  # type: ignore[arg-type]
    return str(error.value)


def test_an_engine_without_torchrun_is_refused() -> None:
    told = refused(replace(TRAINING, fsdp="fsdp2.json"))
    assert "training.fsdp" in told and "torchrun --nproc_per_node" in told


@pytest.mark.usefixtures("of")
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fsdp": "a.json", "deepspeed": "a.json"}, "two engines"),
        ({"fsdp": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"fsdp": "list.json"}, "not a table"),
        ({"fsdp": "broken.json"}, "not valid JSON"),
        ({"fsdp": "old.json"}, "only version 2"),
        ({"batch": 1}, "2 processes share a step of 1 rows"),
    ],
)
def test_wrong_settings_are_refused(
    settings: dict[str, object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("list.json", "[]"), ("broken.json", "{"), ("old.json", '{"version": 1}')):
        (tmp_path / name).write_text(text)
    assert told in refused(replace(TRAINING, **settings))  # type: ignore[arg-type]


@pytest.mark.usefixtures("of")
def test_deepspeed_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domainkit.engines.find_spec", lambda name: None)
    told = refused(replace(TRAINING, deepspeed=str(DEPLOY / "zero2.json")))
    assert "not installed" in told and "domainkit[deepspeed]" in told


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_silent_fallback_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} was asked for, and the Trainer has made Linear of it"):
        Engine(name).check(nn.Linear(1, 1))


def test_shipped_settings_are_read(of: pytest.MonkeyPatch) -> None:
    for path in DEPLOY.glob("*.json"):
        key = "fsdp" if path.name.startswith("fsdp") else "deepspeed"
        of.setattr("domainkit.engines.find_spec", lambda name: True)
        assert engine(replace(TRAINING, **{key: str(path)})).name == key  # type: ignore[arg-type]


def test_a_process_that_nobody_started_is_alone() -> None:
    assert not ranks.launched() and ranks.leads() and ranks.count() == 1
    assert ranks.total([1.5, 2.0]) == [1.5, 2.0] and ranks.gather("x") == ["x"]
    with ranks.in_turn():
        ranks.wait()
