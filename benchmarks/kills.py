"""SIGKILL at random moments: does every run go on, and does it end with the same bits as one that nobody killed?

    python benchmarks/kills.py [--kills 200] [--seed 0] [--dry]

A small but real run (a tiny base in 4 bits with random weights, a glossary, two tasks, two adapters) is started as
`domainkit finetune …`, killed, continued with `--resume`, killed again, until it ends; then its files are compared
with those of an uninterrupted run, and the next run starts with an empty cache. Half of the attempts are killed after a
random time, if they have not ended by then, half at most 30 ms after a phase has begun. Importing torch takes longer
than such a run, so each attempt is forked from a process that has imported everything and done nothing; what then runs
is the command itself. Linux.
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from machine import write_results

from domainkit import cli, prepare, recipes
from domainkit.checkpoint import SavingTrainer
from domainkit.data.clean import clean
from domainkit.files import DRAFT, digest
from domainkit.model import trunk
from domainkit.model.store import Store
from domainkit.types import Example

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.test_recipes import make_domain
from tests.tiny import make_base

ELSEWHERE = "loading, reading, between the others"
PHASES: dict[str, tuple[Any, str]] = {  # in their order: the function that is the phase
    "learning terms": (prepare, "_teach"),
    "trunk": (recipes, "activations"),
    "writing a shard": (Store, "put"),
    "training": (recipes, "train"),
    "writing a checkpoint": (SavingTrainer, "_save_checkpoint"),
    "saving the run": (recipes.bundle, "save"),
    "reports": (recipes, "publish"),
    "finishing": (recipes, "finish"),
}
NAMES = (ELSEWHERE, *PHASES)
LATE = ("datasketch", "ftfy", "jinja2", "scipy.stats", "sklearn.feature_extraction.text", "sklearn.linear_model")
SOON = 0.03  # seconds after the beginning of a phase
TERMS = (
    ("margin", "利润"), ("creditors", "商业银行"), ("payment", "贷款"), ("interest", "准备"),
    ("borrower", "逾期"), ("mortgage", "金融"), ("disclose", "市场"), ("institution", "维护"),
)  # fmt: skip
SETTINGS = (
    "lm.tokens=5000", "lm.test_tokens=3000", "glossary_tokens=1000", "context=64", "batch=8", "micro_batch=4",
    "epochs=2", "save_steps=3", "activations=float16",
)  # fmt: skip
SHARD = 1024  # tokens of a shard, so that a small run has several


@dataclass(frozen=True)
class Job:
    """What is run: the command without its output folder, and where everything lies."""

    folder: Path
    line: tuple[str, ...]
    state: mmap.mmap  # shared with the attempt: number of the phase it is in, then how often each has begun


@dataclass(frozen=True)
class Kill:
    """When to kill: so many seconds after the start, or after the nth beginning of a phase."""

    wait: float
    phase: str = ""
    nth: int = 1


@dataclass(frozen=True)
class Ended:
    """How an attempt ended; `code` is None when it was killed."""

    code: int | None
    phase: str
    seconds: float


def make_job(folder: Path) -> Job:
    glossary = folder / "terms.tsv"
    rows = [f"t{i}\t{en}\t{zh}\t\tlending\tmade up" for i, (en, zh) in enumerate(TERMS)]
    glossary.write_text("\n".join(("id\ten\tzh\tvariants\tcategory\tsource", *rows)) + "\n", encoding="utf-8")
    domain, base = make_domain(folder / "desk", documents=40), make_base(folder / "base")
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"glossary={glossary}")]
    line = ("finetune", str(domain), "--base", str(base), *settings)
    return Job(folder, line, mmap.mmap(-1, 1 + len(NAMES)))


def watched(state: mmap.mmap) -> None:
    """Let every phase of this process be told while it lasts; what it does is not changed."""

    def wrap(number: int, function: Any) -> Any:
        @wraps(function)
        def telling(*args: Any, **kwargs: Any) -> Any:
            before, state[0] = state[0], number
            state[1 + number] = min(state[1 + number] + 1, 255)
            try:
                return function(*args, **kwargs)
            finally:
                state[0] = before

        return telling

    for number, (owner, name) in enumerate(PHASES.values(), 1):
        setattr(owner, name, wrap(number, getattr(owner, name)))


def attempt(job: Job, out: Path, cache: Path, log: Path, *more: str, kill: Kill | None = None) -> Ended:
    """Run the command in a forked process until it ends or is killed."""
    job.state[:] = bytes(len(job.state))
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        run([*job.line, "--out", str(out), *more], cache, log, job.state)
    if kill:
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if not kill.phase or job.state[1 + NAMES.index(kill.phase)] >= kill.nth:
                time.sleep(kill.wait)
                break
            time.sleep(0.0003)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so it is this child or what is left of it
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(None if code == -signal.SIGKILL else code, NAMES[job.state[0]], time.perf_counter() - began)


def run(line: Sequence[str], cache: Path, log: Path, state: mmap.mmap) -> None:
    """In the child: the command as the console starts it. Does not return."""
    code = 70
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["DOMAINKIT_CACHE"] = str(cache)
        watched(state)
        sys.argv = ["domainkit", *line]
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def next_kill(draw: random.Random, reached: int, seconds: float) -> Kill:
    """reached: number of the furthest phase that this run has been in; a resumed run skips what was before."""
    if draw.random() < 0.5:
        return Kill(draw.uniform(0, seconds))
    phase = draw.choice(NAMES[max(reached, 1) :][:3])  # the next ones, or a run would be killed once or twice only
    return Kill(draw.uniform(0, SOON), phase, draw.randint(1, 4) if phase.startswith("writing") else 1)


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a run but those that tell of the time it took."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    told = {str(path.relative_to(out)): digest(path) for path in files}
    return {name: value if not name.startswith(("reports/", "README")) else "" for name, value in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the results, write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trunk.SHARD = SHARD
    for module in ("domainkit.kinds.lm", "domainkit.kinds.classify", *LATE):
        importlib.import_module(module)
    list(clean([Example("Any text will do: the language model of the filter is loaded once.")], Counter()))
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(make_job(Path(folder)), args.kills, random.Random(args.seed))
    load.append(os.getloadavg()[0])
    print(json.dumps(results, indent=1))
    if not args.dry:
        print(write_results("kills", results, load=load))
    sys.exit(bool(results["runs that did not go on"] or results["runs that ended otherwise"]))


def measure(job: Job, wanted: int, draw: random.Random) -> dict[str, Any]:
    """Kill until there are so many kills, and let every run that was killed end."""
    whole = job.folder / "whole"
    first = attempt(job, whole, job.folder / "cache", job.folder / "log")
    if first.code != 0:
        raise SystemExit((job.folder / "log").read_text())
    expected = contents(whole)
    began, kills = time.perf_counter(), list[tuple[str, str]]()
    runs, stuck, otherwise, drafts = 0, list[str](), list[str](), 0
    while len(kills) < wanted:
        out, cache, log = (job.folder / name for name in ("run", "own-cache", "log"))
        reached, resume, ended = 0, (), None
        while ended is None or ended.code is None:
            kill = next_kill(draw, reached, first.seconds) if len(kills) < wanted else None
            ended = attempt(job, out, cache, log, *resume, kill=kill)
            if ended.code is None and kill:
                kills.append((ended.phase, "at a phase's beginning" if kill.phase else "after a random time"))
                reached, resume = max(reached, NAMES.index(ended.phase)), ("--resume",)
        runs += 1
        found = contents(out) if ended.code == 0 else {}
        if ended.code:
            stuck.append(log.read_text()[-3000:])
        elif found != expected:
            names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            otherwise.append(f"{names} after {kills[-9:]}")
        drafts += sum(1 for path in (*out.rglob("*"), *cache.rglob("*")) if DRAFT.fullmatch(path.name))
        for used in (out, cache):
            shutil.rmtree(used, ignore_errors=True)
        print(f"{len(kills)} kills, {runs} runs, {len(stuck)} stuck, {len(otherwise)} otherwise", file=sys.stderr)
    return {
        "kills": len(kills), "runs": runs,
        "kills by phase": {name: sum(phase == name for phase, _ in kills) for name in NAMES},
        "kills by kind": Counter(kind for _, kind in kills),
        "runs that did not go on": stuck, "runs that ended otherwise": otherwise,
        "compared with the uninterrupted run": sorted(name for name, value in expected.items() if value),
        "half-written files left in caches": drafts,
        "seconds of the uninterrupted run": round(first.seconds, 1),
        "seconds of all": round(time.perf_counter() - began),
    }  # fmt: skip


if __name__ == "__main__":
    main()
