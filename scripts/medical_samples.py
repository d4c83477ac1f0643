"""Build the samples in tasks/medical/data/ from a folder of raw sources.

    python scripts/medical_samples.py SHARED_DATA_FOLDER

Deterministic: the same sources give the same lines. Test documents are what a model must not have seen: whatever a
training file shares with any test file is left out of one of the two, and the README lists it.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainkit.data.jsonl import write_jsonl
from domainkit.data.overlaps import overlaps
from domainkit.data.read import read
from domainkit.files import write_text
from domainkit.types import Example

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "tasks" / "medical" / "data"

OWN_NOTE = 50  # characters; shorter notes ("Noncontributory.") say the same of many patients


@dataclass(frozen=True)
class Sample:
    """A file to write, and what was left out of it because another file has it."""

    examples: tuple[Example, ...]
    left_out: tuple[str, ...] = ()  # ids
    other: str = ""  # the file that has them


def main(shared: Path, out: Path = OUT) -> None:
    """Write every sample and the README into `out`."""
    samples = abstracts(shared / "medical") | dialogues(shared / "medical" / "mts_dialog")
    facts = {name: _write(out / name, sample) for name, sample in samples.items()}
    write_text(out / "README.md", _readme(samples, facts))


def abstracts(folder: Path) -> dict[str, Sample]:
    """BC5CDR complete; BioRED without what is in BC5CDR's other half.

    BioRED reuses abstracts of BC5CDR. Those of BC5CDR's development set go from BioRED's training set; those of
    BC5CDR's training set, which has to stay whole for its figures to compare, from BioRED's development set.
    """
    train = _read(folder / "bc5cdr" / "CDR_TrainingSet.PubTator.txt")
    dev = _read(folder / "bc5cdr" / "CDR_DevelopmentSet.PubTator.txt")
    return {
        "bc5cdr-train.jsonl.gz": Sample(train),
        "bc5cdr-dev.jsonl.gz": Sample(dev),
        "biored-train.jsonl.gz": _without(_read(folder / "biored" / "Train.PubTator"), dev, "bc5cdr-dev"),
        "biored-dev.jsonl.gz": _without(_read(folder / "biored" / "Dev.PubTator"), train, "bc5cdr-train"),
    }


def _without(examples: Iterable[Example], taken: Iterable[Example], other: str) -> Sample:
    ids = {example.id for example in taken}
    kept = tuple(example for example in examples if example.id not in ids)
    return Sample(kept, tuple(sorted((e.id for e in examples if e.id in ids), key=int)), other)


def dialogues(folder: Path) -> dict[str, Sample]:
    """MTS-Dialog; no dialogue of the validation set is for training, and no other dialogue made from the same note."""
    train = _numbered(_read(folder / "MTS-Dialog-TrainingSet.csv"), "mts-dialog-train")
    dev = _numbered(_read(folder / "MTS-Dialog-ValidationSet.csv"), "mts-dialog-dev")
    held = {_words(example.text) for example in dev}
    held |= {_words(example.summary) for example in dev if len(example.summary) >= OWN_NOTE}
    known = {e.id: _words(e.text) in held or _words(e.summary) in held for e in train}
    kept = tuple(example for example in train if not known[example.id])
    return {
        "mts-dialog-train.jsonl.gz": Sample(kept, tuple(id for id in known if known[id]), "mts-dialog-dev"),
        "mts-dialog-dev.jsonl.gz": Sample(dev),
    }


def _words(text: str) -> str:
    return " ".join(text.split())


def _numbered(examples: Iterable[Example], name: str) -> tuple[Example, ...]:
    return tuple(replace(example, id=f"{name}:{example.id.rpartition(':')[2]}") for example in examples)


def _read(path: Path) -> tuple[Example, ...]:
    return tuple(read(path, language="en"))


def _write(path: Path, sample: Sample) -> dict[str, Any]:
    """Write a sample and return what the README says about it."""
    write_jsonl(path, sample.examples)
    return {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest(),  # zlib's versions pack differently
        "characters": sum(len(example.text) for example in sample.examples),
        "mentions": Counter(span.label for example in sample.examples for span in example.spans),
        "relations": Counter(relation.label for example in sample.examples for relation in example.relations),
    }


def _readme(samples: dict[str, Sample], facts: dict[str, dict[str, Any]]) -> str:
    """The README of the data folder, from sources.toml and what was written."""
    sources = tomllib.loads((OUT / "sources.toml").read_text(encoding="utf-8"))
    head = ("file", "split", "documents", "characters", "mentions", "relations", "bytes")
    lines = [sources["about"], f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|---:|"]
    for name, fact in facts.items():
        numbers = (
            len(samples[name].examples), fact["characters"], fact["mentions"].total(), fact["relations"].total(),
            fact["bytes"],
        )  # fmt: skip
        lines.append(f"| {name} | {sources[name]['split']} | {' | '.join(f'{n:,}' for n in numbers)} |")
    lines += ["\n## Left out", *map(_left_out, samples, samples.values())]
    for name, fact in facts.items():
        source, counts = sources[name], overlaps(samples[name].examples)
        lines.append(f"\n## {name}\n\n- Origin: {source['origin']}.\n- Licence: {source['licence']}.")
        lines.append(f"- Made: {source['made']}.")
        if counts.spans:
            lines.append(f"- Mentions: {_counted(fact['mentions'])}.\n- Relations: {_counted(fact['relations'])}.")
            lines.append(
                f"- {counts.nested} mentions nested, {counts.crossing} crossing, {counts.composite} composite (several "
                f"concept ids), {counts.unlinked} without a concept id."
            )
        lines.append(f"- SHA-256 of the lines, unpacked: `{fact['sha256']}`")
    return "\n".join(line for line in lines if line) + "\n"


def _left_out(name: str, sample: Sample) -> str:
    if not sample.left_out:
        return ""
    gone, total = len(sample.left_out), len(sample.left_out) + len(sample.examples)
    ids = ", ".join(id.rpartition(":")[2] for id in sample.left_out)
    return f"\n{gone} of {total:,} documents of {name.partition('.')[0]}, for {sample.other} has them: {ids}."


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{label} {count:,}" for label, count in counts.most_common())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/medical_samples.py SHARED_DATA_FOLDER")
    main(Path(sys.argv[1]))
