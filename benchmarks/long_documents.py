"""What `domainkit finetune` reaches and takes on long documents, with dense attention and with LSH.

    python benchmarks/long_documents.py scores   # {dense, LSH} x {float32, NF4}, sequences of 8,192 tokens
    python benchmarks/long_documents.py memory   # LSH, NF4, learning from and tested on sequences of 100,000 tokens

The documents are the shipped finance and general texts, neighbours of a file put together to that length; the run
splits, cleans and mixes them as any others. The figures are those of its reports: bits per byte on held-out documents,
the untouched base beside, and the peak memory of the process. All runs share a cache that is empty at first. LSH is
taken from 8,192 tokens on, whatever this machine is the faster one at, so that it is LSH that the scores are of.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from machine import write_results

from domainkit.assets import ROOT, cache_dir
from domainkit.files import write_text
from domainkit.model.attention import scored_in
from domainkit.model.crossover import AT, crossover

SOURCES = {  # file → part, language
    "fed": ("domain", "en"),
    "cfpb": ("domain", "en"),
    "statutes-finance": ("domain", "zh"),
    "general-en": ("general", "en"),
    "general-zh": ("general", "zh"),
    "statutes-general": ("general", "zh"),
}
COMMON = ('glossary=""', "batch=1")
PROFILES: dict[str, dict[str, Any]] = {
    "scores": {
        "tokens": 8192,
        "characters": {"en": 5, "zh": 2},  # of a token, so that a document is about as long as a sequence
        "ids": "{}-{}",
        "sources": tuple(SOURCES),
        "settings": ("epochs=2", "lm.tokens=32768", "lm.share=0.5", "lm.test_tokens=8192"),
        "sides": [(bits, attention) for bits in (32, 4) for attention in ("sdpa", "lsh")],
    },
    "memory": {
        "tokens": 100_000,
        "characters": {"en": 6},  # so that no document is shorter
        "ids": "{} {}",  # the split goes by them: of the two documents one is learned from and one is tested on
        "sources": ("fed",),
        "settings": ("epochs=1", "warmup=0", "lm.tokens=100000", "lm.test_tokens=100000"),
        "sides": [(4, "lsh")],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("profile", choices=PROFILES)
    parser.add_argument(
        "--keep", type=Path, help="a folder to leave the runs in; those finished there are not done again"
    )
    args = parser.parse_args()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as place:
        rows = list(runs(Path(place), args.keep or Path(place), **PROFILES[args.profile]))
    load.append(os.getloadavg()[0])
    print(write_results(f"long_documents-{args.profile}", rows, load=load))


def runs(place: Path, out: Path, *, tokens: int, settings: tuple[str, ...], sides: list[tuple[int, str]],
         **documents: Any) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Of each side: scores, those of the untouched base, seconds and MiB."""
    domain(place / "documents", tokens, **documents)
    (place / "cache").mkdir()
    (place / "cache/bases").symlink_to(cache_dir() / "bases")
    os.environ["DOMAINKIT_CACHE"] = str(place / "cache")
    with patch("domainkit.model.crossover.measure", lambda *given: AT):
        crossover("cpu", scored_in("cpu"))  # is known from here on
    for bits, attention in sides:
        run = out / f"{bits}-{attention}"
        given = (*COMMON, *settings, f"context={tokens}", f"bits={bits}", f"attention={attention}")
        command = [sys.executable, "-m", "domainkit", "finetune", str(place / "documents"), "--out", str(run)]
        if not (run / "reports/lm.json").exists():
            subprocess.run([*command, *(part for value in given for part in ("--set", value))], check=True)
        report: Mapping[str, Any] = json.loads((run / "reports/lm.json").read_text())
        yield {
            "bits": bits, "attention": attention, "settings": given, "seconds": round(report["seconds"], 1),
            "MiB": report["peak_rss_mb"], "base": report["base"], "examples": report["examples"],
            "scores": {name: score["value"] for name, score in report["scores"].items()},
            "baseline": report["baseline"],
        }  # fmt: skip


def domain(folder: Path, tokens: int, *, sources: tuple[str, ...], characters: Mapping[str, int], ids: str) -> None:
    """A domain of one task, `lm`, whose documents have about so many tokens."""
    (folder / "data").mkdir(parents=True)
    write_text(folder / "domain.toml", (ROOT / "tasks/finance/domain.toml").read_text())
    told = ['kind = "lm"', 'title = "Reads long documents"']
    for name in sources:
        part, language = SOURCES[name]
        told.append(f'[[sources]]\npath = "data/{name}.jsonl"\npart = "{part}"\nlanguage = "{language}"')
        made = [json.dumps({"id": ids.format(name, number), "text": text}, ensure_ascii=False)
                for number, text in enumerate(together(name, tokens * characters[language]))]  # fmt: skip
        write_text(folder / f"data/{name}.jsonl", "".join(f"{line}\n" for line in made))
    write_text(folder / "lm.toml", "\n".join(told) + "\n")


def together(name: str, characters: int) -> Iterator[str]:
    """Neighbouring texts of a shipped file, joined until they have so many characters; the rest is left out."""
    held: list[str] = []
    for line in (ROOT / f"tasks/finance/data/{name}.jsonl").read_text().splitlines():
        held.append(json.loads(line)["text"])
        if sum(map(len, held)) >= characters:
            yield "\n\n".join(held)
            held = []


if __name__ == "__main__":
    main()
