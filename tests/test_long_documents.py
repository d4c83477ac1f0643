"""Documents longer than the base was trained to read: adapted to, scored and loaded alike, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import domainkit
from domainkit import recipes
from domainkit.data.mix import split
from domainkit.evaluate import peak_rss_mb
from domainkit.extract import Request, extract
from domainkit.kinds import Corpus
from domainkit.model import attention, bundle
from domainkit.report import Report
from domainkit.types import Example, UserError
from tests.clinic import make_clinic, note
from tests.test_recipes import WORDS, write_rows
from tests.tiny import make_base

TRAINED = 64  # positions of the base
DOMAIN = """
title = "Long"
[training]
attention = "lsh"
rank = 4
epochs = 1
bits = 32
context = {context}
"""
LM = """
kind = "lm"
title = "Reads long documents"
settings = {{ tokens = {tokens}, test_tokens = {tokens} }}
sources = [{{ path = "docs.jsonl", part = "domain", language = "en" }}]
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def make_long(folder: Path, *, context: int, words: int, documents: int, tokens: int) -> Path:
    """A domain of `documents` texts of `words` words, one of them held out."""
    folder.mkdir()
    ids = [str(i) for i in range(100)]
    learned, held = split(Example("", id=i) for i in ids)
    draw = torch.Generator().manual_seed(0)

    def text() -> str:
        known = (WORDS["bank"] + " " + WORDS["general"]).split()
        drawn = [known[i] for i in torch.randint(len(known), (words,), generator=draw).tolist()]
        return ". ".join(" ".join(drawn[at : at + 12]) for at in range(0, words, 12)) + "."

    chosen = [held[0].id, *(e.id for e in learned[: documents - 1])]
    write_rows(folder / "docs.jsonl", [{"id": i, "text": text()} for i in chosen])
    (folder / "domain.toml").write_text(DOMAIN.format(context=context))
    (folder / "lm.toml").write_text(LM.format(tokens=tokens))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keys of each call of LSH."""
    seen, real = list[int](), attention.attend

    def spy(q: Any, k: Any, *args: Any, **more: Any) -> Any:
        seen.append(k.shape[2])
        return real(q, k, *args, **more)

    monkeypatch.setattr(attention, "attend", spy)
    return seen


def test_a_run_beyond_the_trained_positions(
    tmp_path: Path,
    cache: Path,
    attended: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(attention, "_short", lambda tokens, device: tokens < 100)
    base = make_base(tmp_path / "base", positions=TRAINED)
    domain = make_long(tmp_path / "long", context=256, words=150, documents=6, tokens=1000)
    run = recipes.finetune(recipes.Request(str(domain), base=str(base), out=tmp_path / "run"))
    said = "64 x 4 by YaRN"
    assert f"reads 256 tokens at once: positions {said}" in capsys.readouterr().err
    assert max(attended) == 256
    report = Report.read(run / "reports" / "lm.json")
    assert report.base["positions"] == said
    assert f"| base positions | {said} |" in (run / "reports" / "lm.md").read_text()
    assert said in (run / "reports" / "index.html").read_text()
    assert bundle.read(run).base["positions"] == said
    card = (run / "README.md").read_text()
    assert said in card
    assert "AutoPeft" not in card  # which would read with the positions as the base has them

    again = Report.read(recipes.evaluate(str(domain), run=run, out=tmp_path / "again") / "lm.json")
    assert again.scores == report.scores

    loaded = domainkit.load(run)
    assert loaded.base.positions == said
    text = json.loads((domain / "docs.jsonl").read_text().splitlines()[0])["text"]
    found = loaded.bits_per_byte(text)
    assert found["adapted"] == pytest.approx(report.scores["bits_per_byte/long-en"].value, rel=1e-3)
    assert found["base"] == pytest.approx(report.baseline["base"]["bits_per_byte/long-en"].value, rel=1e-3)

    merged = AutoConfig.from_pretrained(recipes.export(run, tmp_path / "merged"))
    assert (merged.rope_parameters["rope_type"], merged.rope_parameters["factor"]) == ("yarn", 4)


def test_a_run_that_read_with_plain_positions_is_not_read_with_stretched_ones(tmp_path: Path, cache: Path) -> None:
    base = make_base(tmp_path / "base", positions=TRAINED)
    domain = make_long(tmp_path / "long", context=TRAINED, words=100, documents=6, tokens=1000)
    run = recipes.finetune(recipes.Request(str(domain), base=str(base), out=tmp_path / "run"))
    assert "positions" not in bundle.read(run).base
    record = json.loads((run / bundle.RECORD).read_text())
    record["training"]["context"] = 256  # as runs are that were made before positions were stretched
    (run / bundle.RECORD).write_text(json.dumps(record))
    for read in (lambda: domainkit.load(run), lambda: recipes.evaluate(str(domain), run=run)):
        with pytest.raises(UserError, match=r"with positions as the base has them, .* instead: train again"):
            read()


def test_sequences_that_no_epoch_has_room_for_are_an_error(tmp_path: Path, cache: Path) -> None:
    base = make_base(tmp_path / "base", positions=TRAINED)
    domain = make_long(tmp_path / "long", context=256, words=150, documents=6, tokens=60)
    request = recipes.Request(str(domain), base=str(base), out=tmp_path / "run")
    with pytest.raises(UserError, match=r"lm: 60 tokens .* no room .* long-en; instead: --set lm.tokens=(\d+)") as told:
        recipes.finetune(request)
    enough = str(told.value).partition("--set ")[2].split()[0]
    recipes.finetune(recipes.Request(str(domain), base=str(base), out=tmp_path / "run", overrides=(enough,)))


def test_a_lean_and_lsh_are_not_to_be_had_together(tmp_path: Path, cache: Path) -> None:
    """The lean's mask would be 10 GB for 100,000 tokens, and wrong over packed documents."""
    domain = make_long(tmp_path / "long", context=256, words=150, documents=6, tokens=1000)
    request = recipes.Request(str(domain), out=tmp_path / "run", overrides=("steer=true",))
    with pytest.raises(UserError, match=r"tokens x tokens.*; instead: --set steer=false or --set attention=sdpa"):
        recipes.finetune(request)


def test_what_looks_both_ways_has_a_limit() -> None:
    Corpus("medical", {}, {}, 8192, 0).check_both_ways("ner")
    with pytest.raises(UserError, match=r"ner: context is 8193, .*; instead: --set context=8192 or less"):
        Corpus("medical", {}, {}, 8193, 0).check_both_ways("ner")


def test_peak_memory_is_of_this_process_alone() -> None:
    """Not of the one that started it, which is what `getrusage` begins with."""
    room = bytearray(400_000_000)
    room[::4096] = b"x" * len(room[::4096])
    lines = "before = peak_rss_mb()", "room = b'x' * 300_000_000", "print(before, peak_rss_mb())"
    code = "; ".join(["from domainkit.evaluate import peak_rss_mb", *lines])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    assert peak_rss_mb() > 400
    assert 200 < after - before < 400


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_document_of_100_000_tokens(tmp_path: Path, cache: Path, attended: list[int]) -> None:
    """Adapted to and scored as one sequence, without anything of tokens x tokens, which would be 10 GB and more."""
    base = make_base(tmp_path / "base", positions=8192, layers=3)
    domain = make_long(tmp_path / "long", context=104_000, words=38_000, documents=2, tokens=104_000)
    once = ("warmup=0.0",)  # else the only step would be of length 0
    run = recipes.finetune(recipes.Request(str(domain), base=str(base), out=tmp_path / "run", overrides=once))
    assert 100_000 < min(attended) <= max(attended) < 104_000
    report = Report.read(run / "reports" / "lm.json")
    assert report.base["positions"] == "8192 x 13 by YaRN"
    assert report.peak_rss_mb < 4000
    assert report.scores["change_percent/long-en"].value < 0
    again = Report.read(recipes.evaluate(str(domain), run=run, out=tmp_path / "again") / "lm.json")
    assert again.scores == report.scores


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_extract_reads_a_document_of_100_000_tokens(tmp_path: Path, cache: Path) -> None:
    clinic = make_clinic(tmp_path / "clinic")
    text = "\n".join(note(number).text for number in range(2_500))
    loaded = domainkit.load(clinic.run)
    assert len(loaded.base.tokenizer(text, verbose=False)["input_ids"]) > 100_000
    (tmp_path / "long.txt").write_text(text)
    done = extract(Request(clinic.run, (tmp_path / "long.txt",), tmp_path / "found.jsonl"))
    (row,) = (json.loads(line) for line in done.out.read_text().splitlines())
    assert row["text"] == text
    near, far = (loaded.extract([text[at : at + 300]])[0] for at in (0, len(text) - 300))
    assert any(near.spans) == any(span["start"] < 300 for span in row["spans"])
    assert any(far.spans) == any(span["start"] >= len(text) - 300 for span in row["spans"])
