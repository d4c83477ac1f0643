"""Peak memory and seconds as `domainkit plan` tells them, beside those of the run itself, phase by phase. Linux.

    python benchmarks/plan.py            # the cases that are reported → results/plan.json
    python benchmarks/plan.py --fit      # those that the constants in estimate.py were set on → results/plan-fit.json
    python benchmarks/plan.py --case NAME…   # these alone; what the file says of the others stays

Plan and run are processes of their own; each run has an empty cache, so nothing is found that it would have to compute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import read_results, write_results
from memory import RESET, STATUS

CARRIED = ("tokenizer.json", "tokenizer_config.json")  # of the embedded base, for models of random weights
SHAPES: dict[str, dict[str, Any]] = {
    "llama-512": {"width": 512, "layers": 8},
    "llama-2048": {"width": 2048, "layers": 8},
    "qwen3-1536": {"family": "qwen3", "width": 1536, "layers": 6},
}


@dataclass(frozen=True)
class Case:
    """One run. base: the embedded one, or a key of SHAPES."""

    domain: str
    tasks: tuple[str, ...]
    limit: int | None
    settings: tuple[str, ...]
    base: str = "smollm2-135m"


LITTLE = ("epochs=1", "lm.tokens=1500", "lm.test_tokens=150", "regulation.train_examples=20",
          "regulation.test_examples=10", "terms.test_queries=10", "glossary_tokens=3000")  # fmt: skip
PLAIN = ('glossary=""', *LITTLE)
FIT = {
    "width 512, 32 bits": Case("finance", ("lm",), 20, ("bits=32", *PLAIN), "llama-512"),
    "finance, all tasks, 4 bits": Case("finance", (), 20, ("bits=4", *LITTLE)),
}
REPORTED = {
    "finance, language only, 4 bits": Case("finance", ("lm",), 20, ("bits=4", *PLAIN)),
    "width 2,048, 4 bits": Case("finance", ("regulation",), 20, ("bits=4", *PLAIN), "llama-2048"),
    "context of 4,096, 32 bits": Case("finance", ("lm",), 20, ("bits=32", "context=4096", *PLAIN, "lm.tokens=4100")),
    "entities and relations, 4 bits": Case("medical", ("ner", "relation"), 6, ("bits=4", "epochs=1")),
    "Qwen3, width 1,536, 32 bits": Case("finance", ("lm",), 20, ("bits=32", *PLAIN), "qwen3-1536"),
    "finance with its glossary, 32 bits": Case("finance", ("lm",), 20, ("bits=32", *LITTLE)),
}
BEFORE, AFTER = "read the data", "evaluate"  # what a run does between the parts that have a name


class Marks:
    """The peak of each part of a run, and its seconds."""

    def __init__(self) -> None:
        self.now, self.since = BEFORE, time.perf_counter()
        self.peaks, self.seconds = defaultdict[str, int](int), defaultdict[str, float](float)

    def turn(self, name: str) -> None:
        """From here on it is another part."""
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        self.peaks[self.now] = max(self.peaks[self.now], int(line.split()[1]) * 1024)
        self.seconds[self.now] += time.perf_counter() - self.since
        print(f"{self.now}: {self.peaks[self.now] / 1e6:,.0f} MB at most so far", file=sys.stderr, flush=True)
        self.now, self.since = name, time.perf_counter()
        RESET.write_text("5")  # the high-water mark falls to what is resident now: man 5 proc

    def watch(self, owner: Any, function: str, name: str, after: str) -> None:
        """Let a function be a part of its own."""
        real: Callable[..., Any] = getattr(owner, function)

        def watched(*given: Any, **named: Any) -> Any:
            self.turn(name)
            try:
                return real(*given, **named)
            finally:
                self.turn(after)

        setattr(owner, function, watched)


def measure(request: Any) -> dict[str, Any]:
    """A run, watched."""
    from domainkit import prepare, recipes

    marks = Marks()
    marks.watch(prepare, "load_base", "load the base", BEFORE)
    marks.watch(prepare, "_teach", "learn the terms", BEFORE)
    marks.watch(recipes, "fresh_top", "solve heads", BEFORE)
    marks.watch(recipes, "activations", "trunk", BEFORE)
    marks.watch(recipes, "train", "train the top", AFTER)
    recipes.finetune(request)
    marks.turn("")
    return {"phases": dict(marks.peaks), "seconds": dict(marks.seconds)}


def predict(request: Any) -> dict[str, Any]:
    """What the plan tells."""
    from domainkit import recipes

    estimate = recipes.plan(request)
    return {
        "phases": {phase.name: phase.peak for phase in estimate.phases},
        "seconds": {phase.name: phase.seconds for phase in estimate.phases if phase.seconds is not None},
        "disk": estimate.disk,
    }


def in_process(what: str, case: Case, base: str, out: Path) -> dict[str, Any]:
    """`measure` or `predict` in a process of its own, with a cache of its own that has the embedded base."""
    from domainkit.assets import cache_dir

    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "bases").symlink_to(cache_dir() / "bases")
        told = out / f"{what}.json"
        given = json.dumps([case.domain, base, case.tasks, case.limit, case.settings, str(out / "run")])
        command = [sys.executable, __file__, "--one", what, given, str(told)]
        subprocess.run(command, check=True, env={**os.environ, "DOMAINKIT_CACHE": cache}, stdout=subprocess.DEVNULL)
        return dict(json.loads(told.read_text()))


def one(what: str, given: str, told: str) -> None:
    """In a process of its own."""
    from domainkit import recipes

    domain, base, tasks, limit, settings, out = json.loads(given)
    request = recipes.Request(domain, base, Path(out), tuple(tasks), limit=limit, overrides=tuple(settings))
    Path(told).write_text(json.dumps({"measure": measure, "predict": predict}[what](request)))


def make_base(folder: Path, *, width: int, layers: int, family: str = "llama") -> Path:
    """A model of random weights in bfloat16 with the tokenizer of the embedded base."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from domainkit.model.bases import resolve

    heads = width // 64
    config = AutoConfig.for_model(
        family, vocab_size=49152, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 4, head_dim=64, max_position_embeddings=8192,
        initializer_range=width**-0.5, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in CARRIED:
        shutil.copy(resolve("smollm2-135m") / name, folder)
    return folder


def compare(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """Plan and run of a case."""
    base = case.base
    if base in SHAPES:
        base = str(folder / base)
        if not Path(base).exists():
            make_base(Path(base), **SHAPES[case.base])
    with tempfile.TemporaryDirectory(dir=folder) as out:
        told, found = (in_process(what, case, base, Path(out)) for what in ("predict", "measure"))
    peaks = {side: max(of["phases"].values()) for side, of in (("predicted", told), ("measured", found))}
    row = {"peak": {**peaks, "ratio": round(peaks["predicted"] / peaks["measured"], 3)}, "phases": {}, "seconds": {}}
    for kind in ("phases", "seconds"):
        for part in found[kind].keys() & told[kind].keys():
            pair = {"predicted": round(told[kind][part], 1), "measured": round(found[kind][part], 1)}
            row[kind][part] = {**pair, "ratio": round(told[kind][part] / max(found[kind][part], 0.01), 3)}
    print(f"\n{name}: {peaks['predicted'] / 1e6:,.0f} MB for {peaks['measured'] / 1e6:,.0f}: {row['peak']['ratio']}")
    for kind, scale, unit in (("phases", 1e6, "MB"), ("seconds", 1, "s")):
        for part, of in row[kind].items():
            print(f"  {part:16} {of['predicted'] / scale:8,.1f} {of['measured'] / scale:8,.1f} {unit}  {of['ratio']}")
    sys.stdout.flush()
    return {"case": {**case.__dict__}, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="the cases that constants were set on")
    parser.add_argument("--case", action="append", help="only this one; what is written of the others stays")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(*given.one)
    cases, file = (FIT, "plan-fit") if given.fit else (REPORTED, "plan")
    earlier = (read_results(file) or {"results": {}})["results"] if given.case else {}
    found: dict[str, Any] = {name: earlier[name] for name in cases if name in earlier}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.case or cases:
            found[name] = compare(name, cases[name], Path(folder))
            write_results(file, found)
    return None


if __name__ == "__main__":
    main()
