"""What `domainkit finetune medical` reaches on documents held out, how long it takes, and what each part brings.

    python benchmarks/medical.py default         # the command as it comes, then `extract` on the held-out texts
    python benchmarks/medical.py bc5cdr          # entities and relations together, then `extract`
    python benchmarks/medical.py ner             # entities alone: the single-task ablation
    python benchmarks/medical.py relation        # relations alone
    python benchmarks/medical.py summary         # titles alone: with the constraint, without, beside the untouched base
    python benchmarks/medical.py note            # notes from dialogues alone, likewise
    python benchmarks/medical.py writing         # titles and notes together, as the command trains them
    python benchmarks/medical.py unbalanced      # the tasks' losses all weighed alike
    python benchmarks/medical.py no-gazetteer    # entities alone, without what the concept graph's names say
    python benchmarks/medical.py biored          # the second set: six kinds of entities, eight relations
    python benchmarks/medical.py folds           # entities: five-fold over train and dev, 1,000 abstracts

About 20 minutes each on two idle cores, `folds` an hour (each core trains a fold of its own). Figures are those of the
run's own reports. `default` and `bc5cdr` start from an empty activation cache, so that their time is the whole time;
the others use the user's. The constraint's own ablations (mask on and off, summaries with and without) stand in every
report. Settings were chosen on slices of the training sets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from machine import write_results

PROFILES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {  # domain, settings, tasks (none: all)
    "default": ("medical", (), ()),
    "bc5cdr": ("medical", (), ("ner", "relation")),
    "ner": ("medical", (), ("ner",)),
    "relation": ("medical", (), ("relation",)),
    "summary": ("medical", (), ("summary",)),
    "note": ("medical", (), ("note",)),
    "writing": ("medical", (), ("summary", "note")),
    "unbalanced": ("medical", ("balance=false",), ("ner", "relation")),
    "no-gazetteer": ("medical", ("ner.gazetteer=false",), ("ner",)),
    "biored": ("biored", (), ()),
}
WHOLE = ("default", "bc5cdr")  # nothing is taken from the cache, and reading is timed
FOLDS = 5
KEYS = ("summary", "base", "scores", "per_label", "baseline", "examples", "tables", "peak_rss_mb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("profile", choices=[*PROFILES, "folds"], nargs="?", default="default")
    parser.add_argument("--run", type=Path, help="a finished run: read its reports, time `extract`, train nothing")
    parser.add_argument(
        "--keep", type=Path, help="write the run here, over what may be there; `folds` keeps those it finds"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        if args.profile == "folds":
            results, facts = folds(args.keep or Path(folder), args.seed)
        else:
            results, facts = profile(args.profile, Path(folder), args.run, args.keep, args.seed)
    load.append(os.getloadavg()[0])
    path = write_results(f"medical-{args.profile}", results, **facts, load=load)
    for report in results.values():
        print(report["summary"])
    print(f"{facts} → {path}")


def profile(
    name: str, folder: Path, run: Path | None, keep: Path | None, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    from domainkit.assets import cache_dir
    from domainkit.recipes import Request, finetune

    domain, overrides, tasks = PROFILES[name]
    facts: dict[str, Any] = {"overrides": overrides}
    bases = cache_dir() / "bases"
    if run is None:
        if name in WHOLE:
            os.environ["DOMAINKIT_CACHE"] = str(folder / "cache")
            (folder / "cache").mkdir()
            (folder / "cache" / "bases").symlink_to(bases)
        began = time.time()
        out = keep or folder / "run"
        run = finetune(
            Request(domain, out=out, overwrite=keep is not None, tasks=tasks, seed=seed, overrides=overrides)
        )
        saved = (run / "adapter_config.json").stat().st_mtime
        facts |= {"seconds": round(time.time() - began), "seconds until the run is saved": round(saved - began)}
    if name in WHOLE:
        facts |= reading(run)
    return reports(run), facts


def reports(run: Path) -> dict[str, Any]:
    read = {path.stem: json.loads(path.read_text()) for path in sorted((run / "reports").glob("*.json"))}
    return {task: {key: report[key] for key in KEYS} for task, report in read.items()}


def reading(run: Path, documents: int = 200) -> dict[str, Any]:
    """How fast a run reads texts that it has no activations of: entities, concepts and relations, end to end."""
    import domainkit
    from domainkit.assets import ROOT
    from domainkit.data.read import read
    from domainkit.kinds import CHUNK

    held = read(ROOT / "tasks/medical/data/bc5cdr-dev.jsonl.gz")
    texts = [example.text for _, example in zip(range(documents + CHUNK), held, strict=False)]
    began = time.perf_counter()
    loaded = domainkit.load(run)
    loaded.extract(texts[:CHUNK])  # graph, names and linker are prepared here
    ready = time.perf_counter()
    for start in range(CHUNK, len(texts), CHUNK):
        loaded.extract(texts[start : start + CHUNK])
    seconds = time.perf_counter() - ready
    return {"seconds to load": round(ready - began, 1), "documents per second": round(documents / seconds, 2)}


def folds(folder: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every abstract of train and dev is held out once, by the hash of its text."""
    from domainkit.prepare import Request, prepare
    from domainkit.recipes import activations
    from domainkit.spec import Domain

    domains = [_fold_domain(folder / f"fold{number}", number) for number in range(FOLDS)]
    first = str(domains[0])
    activations(prepare(Request(first), Domain.load(first)))  # of all abstracts, which every fold needs
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        trained = pool.map(_fold_report, domains, [seed] * FOLDS)
        results = {f"fold {number}": report for number, report in enumerate(trained)}
    scores: Sequence[float] = [report["scores"]["f1"]["value"] for report in results.values()]
    return results, {"mean strict F1": round(statistics.mean(scores), 4), "by fold": [round(s, 4) for s in scores]}


def _fold_domain(domain: Path, number: int) -> Path:
    """A domain that learns from all abstracts but those of a fold."""
    from domainkit.assets import ROOT
    from domainkit.data.jsonl import write_jsonl
    from domainkit.data.read import read

    shipped = ROOT / "tasks/medical"
    (domain / "data").mkdir(parents=True, exist_ok=True)
    (domain / "domain.toml").write_text((shipped / "domain.toml").read_text())
    (domain / "ner.toml").write_text((shipped / "ner.toml").read_text().replace(".jsonl.gz", ".jsonl"))
    every = [e for part in ("train", "dev") for e in read(shipped / f"data/bc5cdr-{part}.jsonl.gz")]
    for part, held in (("train", False), ("dev", True)):
        chosen = [e for e in every if (_fold(e.text) == number) == held]
        write_jsonl(domain / f"data/bc5cdr-{part}.jsonl", chosen)
    return domain


def _fold_report(domain: Path, seed: int) -> dict[str, Any]:
    from domainkit.recipes import Request, finetune

    run = domain / "run"
    if not (run / "reports/ner.json").exists():
        finetune(Request(str(domain), out=run, seed=seed, resume=run.exists()))
    found: dict[str, Any] = reports(run)["ner"]
    return found


def _fold(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:4]) % FOLDS


if __name__ == "__main__":
    main()
