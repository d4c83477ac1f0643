"""The shipped medical samples: complete, attributed, and with nothing for training that is tested on."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import re
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from domainkit.data.overlaps import mentions, overlaps
from domainkit.data.read import read
from domainkit.types import Example

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tasks" / "medical" / "data"
SOURCES = ROOT.parent / "shared" / "data"
FILES = sorted(SAMPLES.glob("*.jsonl.gz"))


@cache
def sample(name: str) -> tuple[Example, ...]:
    return tuple(read(SAMPLES / f"{name}.jsonl.gz"))


def test_the_readme_says_what_is_there() -> None:
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    sources = tomllib.loads((SAMPLES / "sources.toml").read_text(encoding="utf-8"))
    listed = re.findall(r"^\| (\S+\.jsonl\.gz) \| (train|test) \| ([\d,]+) \|", readme, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, _, count in listed} == {
        file.name: len(sample(file.name.partition(".")[0])) for file in FILES
    }
    assert {name: split for name, split, _ in listed} == {name: sources[name]["split"] for name, *_ in listed}
    for file in FILES:
        assert hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest() in readme
        assert sources[file.name]["licence"] in readme
    assert sum(file.stat().st_size for file in FILES) < 2_000_000


@pytest.mark.parametrize(
    ("name", "documents", "labels", "relations"),
    [
        ("bc5cdr-train", 500, {"Chemical": 5203, "Disease": 4182}, 1038),
        ("bc5cdr-dev", 500, {"Chemical": 5347, "Disease": 4244}, 1012),
    ],
)
def test_bc5cdr_is_complete(name: str, documents: int, labels: dict[str, int], relations: int) -> None:
    examples = sample(name)
    assert (len(examples), Counter(s.label for e in examples for s in e.spans)) == (documents, labels)
    assert Counter(r.label for e in examples for r in e.relations) == {"CID": relations}
    assert all(e.text.startswith(e.summary + " ") and e.language == "en" and e.id.isdigit() for e in examples)


def test_biored_has_its_six_types_and_eight_relations() -> None:
    train, dev = sample("biored-train"), sample("biored-dev")
    assert (len(train), len(dev)) == (303, 74)
    assert len({s.label for e in train for s in e.spans}) == 6
    assert len({r.label for e in train for r in e.relations}) == 8
    assert {r.label for e in dev for r in e.relations} <= {r.label for e in train for r in e.relations}


def test_dialogues_have_notes_and_sections() -> None:
    train, dev = sample("mts-dialog-train"), sample("mts-dialog-dev")
    assert (len(train), len(dev)) == (1195, 100)
    assert {e.label for e in dev} == {e.label for e in train} and len({e.label for e in train}) == 20
    assert all(e.summary and "\r" not in e.text for e in (*train, *dev))


def test_nothing_for_training_is_tested_on() -> None:
    """Across corpora too: BioRED took abstracts from BC5CDR."""
    train = [e for file in FILES if "-train" in file.name for e in sample(file.name.partition(".")[0])]
    test = [e for file in FILES if "-dev" in file.name for e in sample(file.name.partition(".")[0])]
    assert not {e.id for e in train} & {e.id for e in test}
    assert not {" ".join(e.text.split()) for e in train} & {" ".join(e.text.split()) for e in test}
    long = [{" ".join(e.summary.split()) for e in some if len(e.summary) >= 50} for some in (train, test)]
    assert not long[0] & long[1]


@pytest.mark.parametrize("name", ["bc5cdr-train", "bc5cdr-dev", "biored-train", "biored-dev"])
def test_relations_link_what_is_annotated_and_no_mention_overlaps(name: str) -> None:
    for example in sample(name):
        known = mentions(example)
        assert all(relation.head in known and relation.tail in known for relation in example.relations)
    found = overlaps(sample(name))
    assert (found.nested, found.crossing, found.discontinuous) == (0, 0, 0)


@pytest.mark.skipif(not SOURCES.is_dir(), reason="the raw sources are not beside this checkout")
def test_samples_are_rebuilt_line_for_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("medical_samples", ROOT / "scripts" / "medical_samples.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)  # its dataclasses look themselves up
    spec.loader.exec_module(script)
    script.main(SOURCES, tmp_path)
    for file in FILES:
        assert gzip.decompress((tmp_path / file.name).read_bytes()) == gzip.decompress(file.read_bytes()), file.name
    mask = re.compile(r"[\d,]+ \|$", re.MULTILINE)  # packed sizes depend on zlib's version
    assert mask.sub("", (tmp_path / "README.md").read_text()) == mask.sub("", (SAMPLES / "README.md").read_text())
