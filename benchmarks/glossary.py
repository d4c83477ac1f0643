"""What the glossary brings: the same domain adapted with and without it, and with attention steered, on held-out text.

    python benchmarks/glossary.py [--tokens 30000] [--variants with without steer]

Training time is what is held equal: the run without the glossary reads `lm.tokens` of its own tokens, which are
shorter, so it reads less text in the same number of steps of the same size. Both are then scored on the same held-out
finance documents (bits per byte do not depend on how a text is cut), the general text as each run's report has it.
Each variant is a run of its own; rows and activations are taken from the user's cache if they are there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from machine import write_results

from domainkit.data.mix import split
from domainkit.data.read import read
from domainkit.recipes import Request, evaluate, finetune
from domainkit.spec import Domain

VARIANTS = {"with": (), "without": ('glossary=""',), "steer": ("steer=true",), "mean rows": ("glossary_tokens=0",)}

HELD = 30_000  # bytes of held-out text per language


def held_out(path: Path) -> Path:
    """Held-out finance documents of the task `lm`, their beginnings, in one file."""
    lines, room = [], {"en": HELD, "zh": HELD}
    for source in Domain.load("finance").task("lm").sources:
        if source.part == "domain":
            for example in split(read(source.path, language=source.language, source=source.name))[1]:
                text = example.text[:3000]
                if len(text) > 200 and room[source.language] > 0:
                    room[source.language] -= len(text.encode())
                    lines.append(json.dumps({"id": example.id, "language": source.language, "text": text}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=30_000, help="language-model tokens per epoch")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results, load = {}, [os.getloadavg()[0]]
    for name in args.variants:
        overrides = VARIANTS[name]
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            request = Request("finance", out=Path(folder) / "run", tasks=("lm",), seed=args.seed,
                              overrides=(f"lm.tokens={args.tokens}", *overrides))  # fmt: skip
            run = finetune(request)
            seconds = round(time.perf_counter() - began, 1)
            same = evaluate("finance", run=run, tasks=("lm",), out=Path(folder) / "same",
                            data=(f"lm={held_out(Path(folder) / 'held-out.jsonl')}",))  # fmt: skip
            record = json.loads((run / "domainkit.json").read_text())
            paths = [*sorted((run / "reports").glob("*.json")), same / "lm.json"]
            names = [*(path.stem for path in paths[:-1]), "lm on the same text"]
            reports = {name: json.loads(path.read_text()) for name, path in zip(names, paths, strict=True)}
        results[name] = {
            "settings": list(overrides),
            "seconds": seconds,
            "glossary": {k: v for k, v in record["glossary"].items() if k != "left_out"},
            **{task: {"scores": r["scores"], "base": r["baseline"]["base"]} for task, r in reports.items()},
        }
        print(name, *(r["summary"] for r in reports.values()), sep="\n  ", flush=True)
    load.append(os.getloadavg()[0])
    print(write_results("glossary", results, load=load))


if __name__ == "__main__":
    main()
