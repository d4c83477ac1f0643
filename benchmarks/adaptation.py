"""What `domainkit finetune finance` reaches on held-out text: the default run, and one with more finance text.

    python benchmarks/adaptation.py default    # the command as it comes
    python benchmarks/adaptation.py long       # more finance text, about 40 minutes on two idle cores

The figures are read from the run's own reports, where the untouched base stands beside the adapted model. The default
run starts from an empty activation cache, so that its time is the whole time; the long one uses the user's.
Settings are chosen on documents set aside from the training text, never by looking at these test documents.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from machine import write_results

PROFILES = {  # settings, tasks (none: all)
    "default": ((), ()),
    "long": (
        ('glossary=""', "lm.tokens=700000", "lm.share=0.8", "lm.test_tokens=8000", "epochs=1", "rank=64", "alpha=128"),
        ("lm",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("profile", choices=PROFILES, nargs="?", default="default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from domainkit.assets import cache_dir
    from domainkit.recipes import Request, finetune

    overrides, tasks = PROFILES[args.profile]
    bases, load = cache_dir() / "bases", [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        if args.profile == "default":
            os.environ["DOMAINKIT_CACHE"] = folder
            (Path(folder) / "bases").symlink_to(bases)
        began = time.perf_counter()
        request = Request("finance", out=Path(folder) / "run", tasks=tasks, seed=args.seed, overrides=overrides)
        run = finetune(request)
        seconds = time.perf_counter() - began
        keys = ("summary", "scores", "per_label", "baseline", "examples", "tables", "peak_rss_mb")
        read = {path.stem: json.loads(path.read_text()) for path in sorted((run / "reports").glob("*.json"))}
    load.append(os.getloadavg()[0])
    results = {task: {key: report[key] for key in keys} for task, report in read.items()}
    path = write_results(f"adaptation-{args.profile}", results, overrides=overrides,
                         seconds=round(seconds, 1), load=load)  # fmt: skip
    for report in results.values():
        print(report["summary"])
    print(f"{seconds:.0f} s → {path}")


if __name__ == "__main__":
    main()
