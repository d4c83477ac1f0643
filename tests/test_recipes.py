"""Whole stories on a tiny base and a tiny domain: finetune, resume after any end, evaluate, plan."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from domainkit import claim, cli, planning, recipes
from domainkit.estimate import Estimate
from domainkit.files import digest
from domainkit.model import bundle
from domainkit.model.base import load_base
from domainkit.model.store import Store
from domainkit.prepare import prepare
from domainkit.spec import Domain
from domainkit.types import UserError
from tests.tiny import make_base

FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "domainkit.json", "heads.safetensors",
    "tokenizer.json", "tokenizer_config.json", "triage/adapter_config.json", "triage/adapter_model.safetensors",
    *(f"reports/{name}" for name in ("index.html", "lm.json", "lm.md", "regulation.json", "regulation.md")),
}  # fmt: skip
WEIGHTS = ".safetensors"
CONTRACT = {
    "domain", "task", "kind", "split", "examples", "scores", "per_label", "baseline", "base", "data",
    "adapter_sha256", "seconds", "peak_rss_mb", "seed", "versions",
}  # fmt: skip
DOMAIN = """
title = "Desk"
[training]
rank = 4
epochs = 2
batch = 2
micro_batch = 2
context = 64
learning_rate = 1e-2
save_steps = 16
"""
LM = """
kind = "lm"
title = "Reads what the desk reads"
settings = { tokens = 1000, test_tokens = 5000 }
sources = [
  { path = "data/bank.jsonl", part = "domain", language = "en" },
  { path = "data/bank-zh.jsonl", part = "domain", language = "zh" },
  { path = "data/general.jsonl", part = "general", language = "en" },
]
"""
REGULATION = """
kind = "classify"
title = "Finds the regulation of a paragraph"
adapter = "triage"
settings = { train_examples = 60, test_examples = 40, max_tokens = 32 }
sources = [{ path = "data/paragraphs.jsonl", part = "domain", language = "en" }]
"""
WORDS = {
    "bank": "the bank raised its rate of interest and the margin on loans fell after a payment was due to creditors",
    "bank-zh": "商业银行 应当 按照 规定 提取 贷款 损失 准备 并 对 逾期 贷款 进行 分类 管理 以 维护 金融 市场 的 稳定",
    "general": "the patient walked to an old garden where children played under green trees and drank from a river",
    "deposit": "an account holder must receive notice of fees before the deposit institution changes terms and yields",
    "loan": "a creditor shall disclose annual percentage charges to each borrower who applies for mortgage credit",
}


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_domain(folder: Path, documents: int = 30) -> Path:
    """A domain with both kinds of task and `documents` texts in each source; same arguments, same files."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name, toml in (("domain", DOMAIN), ("lm", LM), ("regulation", REGULATION)):
        (folder / f"{name}.toml").write_text(toml, encoding="utf-8")
    draw = random.Random(7)

    def text(name: str, length: int) -> str:
        words, space = WORDS[name].split(), "" if name.endswith("zh") else " "
        return space.join(draw.choices(words, k=length)) + ("." if space else "。")

    for name in ("bank", "bank-zh", "general"):
        write_rows(data / f"{name}.jsonl", [{"id": f"{name}-{i}", "text": text(name, 30)} for i in range(documents)])
    paragraphs = [
        {"id": f"{name}-{i}", "text": text(name, 20), "label": name}
        for i in range(documents)
        for name in ("deposit", "loan")
    ]
    write_rows(data / "paragraphs.jsonl", paragraphs)
    return folder


@dataclass(frozen=True)
class Desk:
    """A place to work: a base, a domain, a finished run, and a cache that the test alone uses."""

    folder: Path
    base: Path
    domain: Path
    run: Path

    def request(self, out: Path, **changes: Any) -> recipes.Request:
        return recipes.Request(str(self.domain), base=str(self.base), out=out, **changes)

    def line(self, out: Path, *more: str) -> list[str]:
        """The arguments of `domainkit` for `request`."""
        return ["finetune", str(self.domain), "--base", str(self.base), "--out", str(out), *more]


def make_desk(folder: Path, **changes: Any) -> Desk:
    """A desk with a finished run; $DOMAINKIT_CACHE must point into a test's folder."""
    desk = Desk(folder, make_base(folder / "base"), make_domain(folder / "desk"), folder / "run")
    recipes.finetune(desk.request(desk.run, **changes))
    return desk


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def domainkit(*arguments: str) -> Ended:
    """Run `domainkit ARGUMENTS` in this process through the console entry. A traceback passes through."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["domainkit", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Ended(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    """Every path below a folder with the moment it was last changed."""
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def same_weights(one: Path, other: Path) -> bool:
    """True when adapters and heads of two runs are the same bit for bit."""
    a, b = ({name: value for name, value in snapshot(run).items() if name.endswith(WEIGHTS)} for run in (one, other))
    return a == b and len(a) == 3


def read_report(run: Path, task: str) -> dict[str, Any]:
    return json.loads((run / "reports" / f"{task}.json").read_text(encoding="utf-8"))


def rows_of(report: dict[str, Any], title: str) -> list[dict[str, Any]]:
    """The rows of one of a report's tables, by column."""
    table = next(table for table in report["tables"] if table["title"] == title)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        yield make_desk(folder)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache nobody has used yet."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# A finished run


def test_a_run_holds_exactly_what_is_promised(desk: Desk) -> None:
    assert snapshot(desk.run).keys() == FILES
    assert not [p for p in desk.run.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (desk.run / claim.WORK).exists()


def test_no_file_of_a_run_is_a_pickle(desk: Desk) -> None:
    for name, content in snapshot(desk.run).items():
        assert content[:1] != b"\x80" and content[:2] != b"PK", name


@pytest.mark.parametrize("task", ["lm", "regulation"])
def test_reports_keep_the_contract(desk: Desk, task: str) -> None:
    report = read_report(desk.run, task)
    assert report.keys() >= CONTRACT
    assert (report["domain"], report["task"], report["split"], report["seed"]) == ("desk", task, "test", 0)
    assert report["base"].keys() == {"name", "sha256", "bits", "attention", "compute"}
    assert all(source.keys() == {"path", "sha256", "format"} for source in report["data"].values())
    assert all(s["low"] <= s["value"] <= s["high"] for s in report["scores"].values())
    adapter = desk.run / ("triage" if task == "regulation" else "") / bundle.ADAPTER
    assert report["adapter_sha256"] == digest(adapter)


def test_the_base_stands_beside_the_adapted_model(desk: Desk) -> None:
    scores, base = (read_report(desk.run, "lm")[key] for key in ("scores", "baseline"))
    slices = [f"bits_per_byte/{name}" for name in ("desk-en", "desk-zh", "general-en")]
    assert [name for name in scores if name in slices] == list(base["base"]) == slices
    assert all(scores[name]["value"] < base["base"][name] for name in slices)  # it has learned something


def test_a_classifier_stands_beside_its_rival(desk: Desk) -> None:
    report = read_report(desk.run, "regulation")
    assert set(report["baseline"]) == {"words-alone", "tfidf-logistic", "tfidf-logistic-all-data"}
    assert all(scores.keys() == report["scores"].keys() for scores in report["baseline"].values())
    assert report["scores"].keys() == {"accuracy", "macro_f1"}
    assert report["per_label"].keys() == {"deposit", "loan"}
    assert report["scores"]["accuracy"]["value"] > 0.75  # half would be guessing


def test_the_page_shows_every_task_and_loads_nothing(desk: Desk) -> None:
    page = (desk.run / "reports" / "index.html").read_text(encoding="utf-8")
    assert "Reads what the desk reads" in page and "Finds the regulation of a paragraph" in page
    assert "src=" not in page and "@import" not in page and "<link" not in page


def test_the_noise_filter_and_the_mixture_are_shown(desk: Desk) -> None:
    report = read_report(desk.run, "lm")
    assert rows_of(report, "Noise filter")[0] == {"rule": "read", "bank": 30, "bank-zh": 30, "general": 30}
    tokens = {row["slice"]: row["tokens per epoch"] for row in rows_of(report, "Mixture")}
    share = (tokens["desk-en"] + tokens["desk-zh"]) / sum(tokens.values())
    assert share == pytest.approx(0.30, abs=0.01)


def test_the_record_says_what_the_run_belongs_to(desk: Desk) -> None:
    record = bundle.read(desk.run)
    assert record.base["sha256"] and record.training["rank"] == 4 and record.seed == 0
    assert record.files.keys() == {"domain.toml", "lm.toml", "regulation.toml"}
    assert record.tasks["regulation"]["labels"] == ["deposit", "loan"]
    assert {name: source["sha256"] for name, source in record.data.items()} == {
        f"{task}/{name}": digest(desk.domain / "data" / f"{name}.jsonl")
        for task, name in (("lm", "bank"), ("lm", "bank-zh"), ("lm", "general"), ("regulation", "paragraphs"))
    }


# The same again, and less of it


def test_one_seed_gives_one_adapter_even_from_an_empty_cache(desk: Desk, own_cache: Path, tmp_path: Path) -> None:
    again = recipes.finetune(desk.request(tmp_path / "again"))
    assert same_weights(again, desk.run)


def test_layers_on_disk_change_no_bit_of_a_run(
    desk: Desk, own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recipes.finetune(desk.request(tmp_path / "run", overrides=("stream=always",)))
    assert "2 of 4 layers stay on disk" in capsys.readouterr().err
    assert same_weights(run, desk.run)
    activations = times(own_cache / "activations")
    whole = recipes.finetune(desk.request(tmp_path / "whole", overrides=("stream=never",)))
    assert times(own_cache / "activations") == activations and "layers stay" not in capsys.readouterr().err
    assert same_weights(whole, run)
    recipes.evaluate(str(desk.domain), run=run, out=tmp_path / "reports")
    for task in ("lm", "regulation"):
        told = [read_report(folder, task) for folder in (run, whole, tmp_path)]
        assert told[0]["scores"] == told[1]["scores"] == told[2]["scores"]


def test_what_else_the_cache_holds_changes_no_score(desk: Desk, own_cache: Path, tmp_path: Path) -> None:
    """Batches of other sizes round otherwise, so the activations of another run may differ in their last bits."""
    recipes.finetune(desk.request(tmp_path / "part", limit=7))
    again = recipes.finetune(desk.request(tmp_path / "again"))
    for task in ("lm", "regulation"):
        scores, before = (read_report(run, task)["scores"] for run in (again, desk.run))
        assert scores.keys() == before.keys()
        for name, score in scores.items():
            assert score["value"] == pytest.approx(before[name]["value"], rel=0.01, abs=0.1), name


def test_the_bar_counts_what_the_cache_lacks(desk: Desk, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, list[int]]] = []

    @contextlib.contextmanager
    def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
        told.append((total, []))
        yield told[-1][1].append

    monkeypatch.setattr(recipes, "bar", bar)
    domain = Domain.load(str(desk.domain))
    for limit in (7, None, None):
        recipes.activations(prepare(desk.request(desk.run, limit=limit), domain))
    assert all(total == sum(done) for total, done in told)
    assert told[0][0] > 0 and told[1][0] > 0 and told[2][0] == 0


def test_another_seed_gives_another_adapter(desk: Desk, tmp_path: Path) -> None:
    other = recipes.finetune(desk.request(tmp_path / "other", seed=1))
    assert not same_weights(other, desk.run)


def test_limit_takes_so_many_documents_of_each_source(desk: Desk, tmp_path: Path) -> None:
    run = recipes.finetune(desk.request(tmp_path / "run", limit=12, tasks=("lm",)))
    read = rows_of(read_report(run, "lm"), "Noise filter")[0]
    assert read == {"rule": "read", "bank": 12, "bank-zh": 12, "general": 12}


def test_task_trains_and_reports_that_task_only(desk: Desk, tmp_path: Path) -> None:
    run = recipes.finetune(desk.request(tmp_path / "run", tasks=("regulation",)))
    assert snapshot(run).keys() >= FILES - {"reports/lm.json", "reports/lm.md"}
    assert not list(run.rglob("lm.*"))
    assert list(bundle.read(run).tasks) == ["regulation"]


def test_own_data_replaces_the_domain_text_and_keeps_the_general_text(desk: Desk, tmp_path: Path) -> None:
    own = make_domain(tmp_path / "other", documents=25) / "data" / "bank.jsonl"
    run = recipes.finetune(desk.request(tmp_path / "run", data=(str(own),), tasks=("lm",)))
    report = read_report(run, "lm")
    assert rows_of(report, "Noise filter")[0] == {"rule": "read", "bank.jsonl": 25, "general": 30}
    assert {name: source["path"] for name, source in report["data"].items()} == {
        "lm/bank.jsonl": str(own), "lm/general": str(desk.domain / "data" / "general.jsonl"),
    }  # fmt: skip


# Evaluating a finished run


def test_eval_repeats_the_scores_of_finetune(desk: Desk, tmp_path: Path) -> None:
    out = recipes.evaluate(str(desk.domain), run=desk.run, out=tmp_path / "reports")
    for task in ("lm", "regulation"):
        before, now = read_report(desk.run, task), read_report(tmp_path, task)
        for key in ("scores", "per_label", "baseline", "examples", "base", "data", "adapter_sha256", "seed"):
            assert now[key] == before[key], key
    assert out == tmp_path / "reports" and (out / "index.html").exists()


def test_eval_scores_the_given_file_only(desk: Desk, tmp_path: Path) -> None:
    texts = [f"The bank raised the rate of interest on loan {i}, {'and ' * i} a payment was due." for i in range(4)]
    own = write_rows(tmp_path / "own.jsonl", [{"text": text} for text in texts])
    recipes.evaluate(str(desk.domain), run=desk.run, data=(f"lm={own}",), tasks=("lm",), out=tmp_path / "reports")
    report = read_report(tmp_path, "lm")
    assert report["examples"] == 4
    assert list(report["data"]) == ["lm/own.jsonl"]
    assert [(row["slice"], row["bytes"]) for row in rows_of(report, "Held-out text")] == [
        ("desk-und", sum(len(text.encode()) for text in texts))
    ]


def test_eval_takes_own_labelled_texts(desk: Desk, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (desk.domain / "data" / "paragraphs.jsonl").read_text().splitlines()[:9]]
    own = write_rows(tmp_path / "own.jsonl", rows)
    recipes.evaluate(
        str(desk.domain), run=desk.run, data=(f"regulation={own}",), tasks=("regulation",), out=tmp_path / "reports"
    )
    assert read_report(tmp_path, "regulation")["examples"] == 9


def test_eval_of_one_task_leaves_the_others_report_and_its_own_curves(desk: Desk, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(desk.run, run)
    recipes.evaluate(str(desk.domain), run=run, tasks=("regulation",))
    assert read_report(run, "lm") == read_report(desk.run, "lm")
    assert read_report(run, "regulation")["curves"] == read_report(desk.run, "regulation")["curves"] != []
    page = (run / "reports" / "index.html").read_text(encoding="utf-8")
    assert "Reads what the desk reads" in page and "Finds the regulation of a paragraph" in page


def test_another_runs_report_in_the_folder_is_not_shown_as_this_ones(desk: Desk, tmp_path: Path) -> None:
    other = recipes.finetune(desk.request(tmp_path / "other", seed=1, tasks=("lm",)))
    shutil.copytree(other / "reports", tmp_path / "mixed")
    recipes.evaluate(str(desk.domain), run=desk.run, tasks=("regulation",), out=tmp_path / "mixed")
    page = (tmp_path / "mixed" / "index.html").read_text(encoding="utf-8")
    assert "Reads what the desk reads" not in page and "Finds the regulation of a paragraph" in page


def test_a_wrong_base_is_refused_with_both_fingerprints(desk: Desk, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(UserError) as fault:
        recipes.evaluate(str(desk.domain), run=desk.run, base=str(other), out=tmp_path / "reports")
    known = bundle.read(desk.run).base["sha256"]
    from domainkit.model.folder import fingerprint

    assert known in str(fault.value) and fingerprint(other) in str(fault.value) and known != fingerprint(other)
    assert not (tmp_path / "reports").exists()


# What is there already


def test_a_finished_run_is_not_overwritten_unasked(desk: Desk) -> None:
    before = times(desk.run)
    with pytest.raises(UserError, match=r"finished run.*--overwrite"):
        recipes.finetune(desk.request(desk.run))
    assert times(desk.run) == before


def test_overwrite_replaces_a_finished_run(desk: Desk, tmp_path: Path) -> None:
    shutil.copytree(desk.run, tmp_path / "run")
    run = recipes.finetune(desk.request(tmp_path / "run", seed=1, overwrite=True, tasks=("lm",)))
    assert bundle.read(run).seed == 1
    left = {name for name in snapshot(run) if "regulation" in name or "triage" in name or claim.WORK in name}
    assert not left  # the report of a task that this run never had would be a false one


def test_resuming_a_finished_run_returns_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(recipes, "load_base", loaded)
    before = times(desk.run)
    assert recipes.finetune(desk.request(desk.run, resume=True)) == desk.run
    assert times(desk.run) == before


class Killed(BaseException):
    """Stands in for the end of the process: nothing may catch it."""


@pytest.fixture(scope="module")
def cut_off(desk: Desk) -> Path:
    """A run that ended when its adapter should have been written."""

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(recipes.bundle, "save", kill)
        recipes.finetune(desk.request(desk.folder / "unfinished"))
    return desk.folder / "unfinished"


@pytest.fixture
def unfinished(cut_off: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(cut_off, tmp_path / "unfinished"))


def test_an_unfinished_run_is_refused_and_the_ways_out_are_named(desk: Desk, unfinished: Path) -> None:
    before = times(unfinished)
    with pytest.raises(UserError, match=r"unfinished run.*--resume to go on, --overwrite to start again"):
        recipes.finetune(desk.request(unfinished))
    assert times(unfinished) == before


def test_an_unfinished_run_is_not_evaluated(desk: Desk, unfinished: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run here.*--resume"):
        recipes.evaluate(str(desk.domain), run=unfinished)


@pytest.mark.parametrize(
    ("changes", "named", "unnamed"),
    [
        ({"seed": 1}, "seed was 0, is 1", "rank"),
        ({"overrides": ("rank=8",)}, "rank was 4, is 8", "warmup"),
        ({"overrides": ("lm.tokens=999",)}, "tokens was 1000, is 999", "rank"),
        ({"tasks": ("lm",)}, "regulation", "rank"),
        ({"limit": 9}, "limit was None, is 9", "rank"),
    ],
    ids=["seed", "training", "settings", "tasks", "limit"],
)
def test_resuming_with_other_settings_is_refused_by_name(
    desk: Desk, unfinished: Path, changes: dict[str, Any], named: str, unnamed: str
) -> None:
    before = times(unfinished)
    with pytest.raises(UserError, match="started differently") as fault:
        recipes.finetune(desk.request(unfinished, resume=True, **changes))
    assert named in str(fault.value) and unnamed not in str(fault.value)
    assert times(unfinished).keys() == before.keys()


def test_resuming_with_changed_data_is_refused_by_name(desk: Desk, unfinished: Path) -> None:
    file = desk.domain / "data" / "bank.jsonl"
    content = file.read_bytes()
    try:
        file.write_bytes(content + b'{"text": "one more line about the rate of interest"}\n')
        with pytest.raises(UserError, match=r"started differently.*bank") as fault:
            recipes.finetune(desk.request(unfinished, resume=True))
    finally:
        file.write_bytes(content)
    assert "paragraphs" not in str(fault.value)


def test_damaged_settings_of_an_unfinished_run_are_refused(desk: Desk, unfinished: Path) -> None:
    path = unfinished / claim.WORK / "run.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=r"run\.json: damaged.*instead: --overwrite to start again"):
        recipes.finetune(desk.request(unfinished, resume=True))


def test_overwrite_starts_an_unfinished_run_anew(desk: Desk, unfinished: Path) -> None:
    run = recipes.finetune(desk.request(unfinished, overwrite=True))
    assert same_weights(run, desk.run) and snapshot(run).keys() == FILES


# Killed, interrupted


def spawn(desk: Desk, out: Path, *more: str) -> subprocess.Popen[str]:
    """`python -m domainkit finetune …` as a process of its own, with as many threads as this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "domainkit", *desk.line(out, *more)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip


def wait_for(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until something is there; a process that ends first has failed."""
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def wait_for_line(start: str, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(start):
            return
    raise AssertionError(f"never said {start!r}: {seen}")


def shards(cache: Path) -> list[Path]:
    return list(cache.glob("activations/*/*.safetensors"))


@pytest.fixture(scope="module")
def reference(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Path, tuple[str, ...]]:
    """A desk with two shards of text or more, its uninterrupted run, and the settings of both."""
    folder = tmp_path_factory.mktemp("long")
    larger = replace(desk, domain=make_domain(folder / "desk", documents=200))
    settings = ("lm.tokens=8000", "lm.test_tokens=9000", "epochs=1", "save_steps=8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        run = recipes.finetune(larger.request(folder / "run", overrides=settings))
    assert len(shards(folder / "cache")) >= 2  # so that there is a middle to kill the trunk in
    return larger, run, settings


def test_a_step_is_put_together_from_what_fits_and_so_it_stays(
    desk: Desk, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on where more is free computes as many rows at once as before: other sums have other bits."""
    asked: list[tuple[int, int]] = []

    def fitting(row: int, batch: int, beside: int = 0) -> int:
        asked.append((row, batch))
        return 3

    class Crash(Exception):
        pass

    def crash(*given: object, **named: object) -> None:
        raise Crash

    settings = ("batch=4", "micro_batch=0")
    monkeypatch.setattr(planning, "at_once", fitting)
    recipes.finetune(desk.request(tmp_path / "whole", overrides=settings))
    assert bundle.read(tmp_path / "whole").training["micro_batch"] == 3
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(bundle, "save", crash)
        recipes.finetune(desk.request(tmp_path / "cut", overrides=settings))
    monkeypatch.setattr(planning, "at_once", lambda *given: 1)
    recipes.finetune(desk.request(tmp_path / "cut", overrides=settings, resume=True))
    assert bundle.read(tmp_path / "cut").training["micro_batch"] == 3
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    planned = recipes.plan(desk.request(tmp_path / "plan", overrides=settings))
    assert planned.training.micro_batch == 1
    assert [batch for _, batch in asked] == [4, 4] and 4 * asked[0][0] > planned.batch > asked[0][0] / 4


@pytest.mark.parametrize("moment", ["trunk", "checkpoint", "evaluation"])
def test_a_killed_run_goes_on_to_the_same_weights(
    reference: tuple[Desk, Path, tuple[str, ...]], own_cache: Path, tmp_path: Path, moment: str
) -> None:
    desk, uninterrupted, settings = reference
    out = tmp_path / "run"
    process = spawn(desk, out, *(f"--set={setting}" for setting in settings))
    if moment == "trunk":  # a shard is done, the next is not
        wait_for(lambda: shards(own_cache), process)
    elif moment == "checkpoint":  # the second one is being written
        wait_for((out / claim.WORK / "checkpoint-16").exists, process)
    else:
        wait_for_line("evaluating", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and (out / claim.WORK).exists()
    assert (out / claim.WORK / "checkpoint-8").exists() == (moment == "checkpoint")
    assert (out / bundle.RECORD).exists() == (moment == "evaluation")
    recipes.finetune(desk.request(out, overrides=settings, resume=True))
    assert same_weights(out, uninterrupted)
    assert snapshot(out).keys() == FILES
    assert read_report(out, "lm")["scores"] == read_report(uninterrupted, "lm")["scores"]


@pytest.mark.parametrize("before", [bundle.ADAPTER, bundle.RECORD])
def test_a_run_that_ends_between_two_renames_is_no_run(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Another run lay there: neither it nor the new one may be taken for whole."""

    def replace_or_die(source: Any, target: Any) -> None:
        if Path(target).name == before:
            raise Killed
        os.rename(source, target)

    run = tmp_path / "run"
    shutil.copytree(desk.run, run)
    request = desk.request(run, seed=3, tasks=("regulation",), overwrite=True)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace_or_die)
        recipes.finetune(request)
    with pytest.raises(UserError, match="no finished run here"):
        bundle.read(run)
    recipes.finetune(replace(request, overwrite=False, resume=True))
    assert bundle.read(run).seed == 3


def test_two_processes_may_fill_one_store_but_not_work_on_one_run(
    reference: tuple[Desk, Path, tuple[str, ...]], own_cache: Path, tmp_path: Path
) -> None:
    desk, uninterrupted, settings = reference
    more = [f"--set={setting}" for setting in settings]
    runs = [tmp_path / "a", tmp_path / "b"]
    processes = [spawn(desk, out, *more) for out in runs]
    wait_for((runs[0] / claim.WORK / "run.json").exists, processes[0])
    with pytest.raises(UserError, match=r"a: another process works on this run; instead: another --out"):
        recipes.finetune(desk.request(runs[0], overrides=settings, resume=True))
    for process, out in zip(processes, runs, strict=True):
        _, err = process.communicate()
        assert process.returncode == 0 and "computed anew" not in err, err
        assert same_weights(out, uninterrupted) and snapshot(out).keys() == FILES
    assert {path.name for path in shards(own_cache)} == {path.name for path in shards(uninterrupted.parent / "cache")}


@pytest.mark.parametrize("moment", ["before", "half deleted"])
def test_killed_when_all_is_done_it_is_finished(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What only an unfinished run needs is deleted last; half of it is never taken for a run that can go on."""

    def delete_half(folder: Path, **_: Any) -> None:
        for path in [p for p in sorted(folder.rglob("*")) if p.is_file()][:3]:
            path.unlink()
        if folder.exists():
            raise Killed

    def finish(folder: Path) -> None:
        if moment == "before":
            raise Killed
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", delete_half)
            claim.finish(folder)

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(recipes, "finish", finish)
        recipes.finetune(desk.request(run))
    assert (run / claim.WORK).exists() == (moment == "before")
    assert (run / claim.DONE).exists() == (moment == "half deleted")
    (run / claim.LOCK).touch()  # a process that is really killed leaves it
    recipes.finetune(desk.request(run, resume=True))
    assert same_weights(run, desk.run) and snapshot(run).keys() == FILES


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_weights(
    reference: tuple[Desk, Path, tuple[str, ...]], own_cache: Path, tmp_path: Path
) -> None:
    desk, uninterrupted, settings = reference
    out = tmp_path / "a run"
    more = [f"--set={setting}" for setting in settings]
    process = spawn(desk, out, *more)
    wait_for((out / claim.WORK / "checkpoint-8").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    line = shlex.join(["domainkit", *desk.line(out, *more), "--resume"])
    assert err.splitlines()[-1] == f"stopped; continue with: {line}"
    assert domainkit(*shlex.split(line)[1:]).code == 0
    assert same_weights(out, uninterrupted)


@pytest.mark.parametrize("moment", ["trunk", "evaluation"])
def test_ctrl_c_outside_the_training_is_as_harmless(
    desk: Desk, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    out = tmp_path / "run"
    owner, name = (Store, "put") if moment == "trunk" else (recipes, "judge")
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            ended = domainkit(*desk.line(out))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert ended.code == 130 and ended.err.splitlines()[-1].endswith("--resume")
    recipes.finetune(desk.request(out, resume=True))
    assert same_weights(out, desk.run)


# Before anything runs


def test_a_dry_run_writes_nothing_and_says_what_it_would_cost(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = times(desk.folder)
    ended = domainkit("finetune", str(desk.domain), "--base", str(desk.base), "--dry-run")
    assert ended.code == 0
    for needed in (
        "task lm",
        "task regulation",
        "tokens once, counted",
        " s\n",
        "peak:",
        "GB",
        "disk",
        "MB",
        "workers:",
    ):
        assert needed in ended.out
    assert times(desk.folder) == before and not list(tmp_path.iterdir())


def test_a_plan_counts_what_then_is_done(desk: Desk, own_cache: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):  # no weights
        shutil.copy(desk.base / name, bare)
    changed = {"overrides": ("activations=float16", "depths=[1]")}
    estimate = recipes.plan(replace(desk.request(tmp_path / "run", **changed), base=str(bare)))
    recipes.finetune(desk.request(tmp_path / "run", **changed))
    values = [value for path in shards(own_cache) for value in load_file(path).values()]
    assert estimate.disk == sum(value.nbytes for value in values)
    assert estimate.data.tokens == estimate.disk // 2 // 2 // 64  # width 64, two depths, two bytes each
    domain = Domain.load(str(desk.domain), overrides=changed["overrides"])
    real = recipes.fresh_top(prepare(desk.request(tmp_path / "run", **changed), domain), 0)
    assert estimate.learning == sum(value.numel() for value in real.trainable().values())


def test_a_plan_for_tokens_that_are_not_there_needs_a_config_only(desk: Desk, tmp_path: Path) -> None:
    config = Path(shutil.copy(desk.base / "config.json", tmp_path / "model.json"))
    small, large = (
        recipes.plan(replace(desk.request(tmp_path / "run"), base=str(config)), tokens) for tokens in (10_000, 10**9)
    )
    assert (small.data.tokens, small.disk) == (10_000, 10_000 * 64 * 2) and large.disk == 10**9 * 64 * 2
    assert sum(small.data.trained.values()) == pytest.approx(20_000, abs=2)  # two epochs
    assert large.peak > 10**11 > small.peak  # the text has to be held
    assert small.learning == recipes.plan(desk.request(tmp_path / "run")).learning  # labels are those of the data


def test_attention_takes_time_with_the_square_of_a_long_context(desk: Desk, tmp_path: Path) -> None:
    def trunk(context: int, attention: str) -> float:
        overrides = (f"context={context}", "batch=1", f"attention={attention}")
        phases = recipes.plan(desk.request(tmp_path / "run", overrides=overrides), 10**7).phases
        return float(next(phase.seconds or 0 for phase in phases if phase.name == "trunk"))

    assert trunk(65536, "sdpa") > 20 * trunk(1024, "sdpa")  # at width 64 nearly all of it is attention
    assert trunk(65536, "lsh") < trunk(65536, "sdpa") / 3


def test_a_plan_leaves_out_the_memory_of_layers_on_disk(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(how: str) -> Estimate:
        return recipes.plan(desk.request(tmp_path / "run", overrides=("bits=32", f"stream={how}")))

    def most(estimate: Estimate) -> int:
        return max(phase.needed for phase in estimate.phases)

    monkeypatch.setattr("domainkit.estimate.TOGETHER", 0)  # what is on its way is larger than these layers
    whole, streamed = planned("never"), planned("always")
    assert (whole.on_disk, streamed.on_disk, planned("auto").on_disk) == (0, 2, 0)
    monkeypatch.setattr("domainkit.estimate.SHARE", 0)
    assert planned("auto").on_disk == 2
    layer = sum(p.numel() * 4 for p in load_base(desk.base, bits=32).layers()[0].parameters())
    assert whole.needed[32] - whole.streamed == layer  # two are on disk, one of them at a time in memory
    assert most(whole) == whole.needed[32] and most(streamed) == streamed.streamed


def test_nothing_is_written_for_a_task_that_does_not_exist(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown task 'nope'"):
        recipes.finetune(desk.request(tmp_path / "run", tasks=("nope",)))
    assert not list(tmp_path.iterdir())
