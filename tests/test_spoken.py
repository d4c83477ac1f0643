"""A domain with a glossary, from its tokens to plain PEFT: nothing is lost on the way, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import domainkit
from domainkit import recipes
from domainkit.model import bundle
from domainkit.model.base import load_base
from domainkit.types import UserError
from tests.model.test_rows import write_glossary
from tests.test_recipes import Desk, make_domain
from tests.test_recipes import domainkit as command
from tests.tiny import make_base

pytestmark = pytest.mark.usefixtures("one_thread")

TERMS = (
    ("rate-of-interest", "rate of interest", "分类管理"),
    ("payment-due", "payment was due", "贷款损失"),
    ("margin-on-loans", "margin on loans", "逾期贷款"),
    ("financial-market", "financial market", "金融市场"),
    ("commercial-bank", "commercial bank", "商业银行"),
    ("stable", "stable system", "市场的稳定"),
    ("creditors", "creditors", "债权人"),  # one word: the made-up text holds it often
)
ASKS = """
kind = "terms"
title = "Finds the English term"
settings = { test_queries = 20, held_terms = 0.3 }
sources = [{ path = "data/bank-zh.jsonl", part = "domain", language = "zh" }]
"""
TEXT = "商业银行对逾期贷款进行分类管理, and a payment was due."


def make_desk(folder: Path, *, tied: bool = True) -> Desk:
    """A desk whose domain has a glossary beside it."""
    domain = make_domain(folder / "desk")
    write_glossary(domain / "desk.tsv", TERMS)
    settings = (domain / "domain.toml").read_text() + 'glossary = "desk.tsv"\nglossary_tokens = 3000\n'
    (domain / "domain.toml").write_text(settings)
    (domain / "terms.toml").write_text(ASKS)
    return Desk(folder, make_base(folder / "base", tied=tied), domain, folder / "run")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("spoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        made = make_desk(folder, tied=request.param)
        recipes.finetune(made.request(made.run, overrides=("bits=32",)))
        yield made


def plain(desk: Desk) -> Any:
    """The run as PEFT alone loads it."""
    return AutoPeftModelForCausalLM.from_pretrained(desk.run).eval()


def test_the_record_and_every_report_tell_of_the_glossary(desk: Desk) -> None:
    record = bundle.read(desk.run)
    assert record.glossary["name"] == "desk" and record.glossary["tokens"] >= len(TERMS)
    assert {"random", "mean", "distilled"} < set(record.glossary["mismatch"])
    for task in ("lm", "regulation", "terms"):
        report = json.loads((desk.run / "reports" / f"{task}.json").read_text())
        assert any(table["title"] == "Glossary desk" for table in report["tables"])
    report = json.loads((desk.run / "reports" / "terms.json").read_text())
    assert {"top1_all/contexts", "top1_20/contexts", "top1_all/terms", "top1_20/terms"} == set(report["scores"])
    assert {"base", "next token"} == set(report["baseline"])
    assert report["scores"]["top1_all/contexts"]["value"] == 1


def test_plain_peft_loads_the_very_rows(desk: Desk) -> None:
    saved = load_file(desk.run / "adapter_model.safetensors")
    rows = {name: value for name, value in saved.items() if bundle.TOKENS in name}
    run = domainkit.load(desk.run)
    assert len(rows) == (1 if run.base.tied else 2)
    model, added = plain(desk), list(run.base.added)
    assert torch.equal(model.get_input_embeddings().weight[added], run.base.embedding.weight[added])
    assert torch.equal(model.get_output_embeddings().weight[added], run.base.head.weight[added])


def test_plain_peft_computes_what_domainkit_computes(desk: Desk) -> None:
    tokenizer = AutoTokenizer.from_pretrained(desk.run)
    run = domainkit.load(desk.run)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert any(i in run.base.added for i in ids[0].tolist())
    assert tokenizer.decode(ids[0]) == TEXT
    with torch.no_grad():
        theirs, ours = plain(desk)(input_ids=ids).logits, run.model(input_ids=ids).logits
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_every_adapter_brings_the_rows(desk: Desk) -> None:
    added = list(domainkit.load(desk.run).base.added)
    model = plain(desk)
    model.load_adapter(str(desk.run / "triage"), "triage")
    model.set_adapter("triage")
    expected = load_file(desk.run / "triage" / "adapter_model.safetensors")
    key = next(key for key in expected if "embed_tokens" in key)
    assert torch.equal(model.get_input_embeddings().weight[added], expected[key])


def test_a_merged_copy_gives_the_same_logits(desk: Desk, tmp_path: Path) -> None:
    assert command("export", str(desk.run), "--merged", str(tmp_path / "merged")).code == 0
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")(TEXT, return_tensors="pt")["input_ids"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, plain(desk)(input_ids=ids).logits, atol=1e-5)


def test_an_export_overwrites_nothing(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    ended = command("export", str(desk.run), "--merged", str(tmp_path / "there"))
    assert ended.code == 1 and "exists" in ended.err
    assert not list((tmp_path / "there").iterdir())


def test_a_run_is_evaluated_with_its_own_tokens(desk: Desk, tmp_path: Path) -> None:
    before = json.loads((desk.run / "reports" / "lm.json").read_text())["scores"]
    folder = recipes.evaluate(str(desk.domain), run=desk.run, base=str(desk.base), out=tmp_path / "again")
    after = json.loads((folder / "lm.json").read_text())["scores"]
    assert after["bits_per_byte/desk-zh"]["value"] == pytest.approx(before["bits_per_byte/desk-zh"]["value"], rel=1e-5)
    once, twice = (json.loads((where / "terms.json").read_text()) for where in (desk.run / "reports", folder))
    assert all(twice[key] == once[key] for key in ("scores", "summary"))


def test_generation_speaks_the_new_tokens(desk: Desk) -> None:
    run = domainkit.load(desk.run)
    assert isinstance(run.model, PeftModel)
    assert isinstance(run.generate("商业银行", max_new_tokens=4), str)
    assert run.bits_per_byte(TEXT)["adapted"] > 0


def test_a_notebook_asks_for_a_term(desk: Desk) -> None:
    run = domainkit.load(desk.run)
    known: Any = run.top.heads["terms"].known
    learned = {term for term, has in zip(run.record.tasks["terms"]["labels"], known.tolist(), strict=True) if has}
    found = {id: run.translate(zh, "商业银行对逾期贷款进行分类管理。") for id, _, zh in TERMS if id in learned}
    assert len(found) > 2 and all(term == id and 0.5 < cosine <= 1 for id, (term, cosine) in found.items())
    term, cosine = run.translate("贷款")  # no term of the glossary
    assert term in run.record.tasks["terms"]["labels"] and -1 <= cosine <= 1


@pytest.mark.parametrize("term", ["", " \n", "贷款" * 500])
def test_what_is_no_term_is_refused(desk: Desk, term: str) -> None:
    with pytest.raises(UserError, match=r"the term is empty, or too long.*instead: a Chinese term"):
        domainkit.load(desk.run).translate(term)


def test_a_run_may_have_nothing_to_train(desk: Desk) -> None:
    """Terms are solved, not trained: no step is taken, and the run is whole all the same."""
    ended = command(*desk.line(desk.folder / "solved", "--task", "terms", "--bits", "32"))
    assert ended.code == 0, ended.err
    report = json.loads((desk.folder / "solved" / "reports" / "terms.json").read_text())
    assert report["scores"]["top1_all/contexts"]["value"] == 1 and not report["curves"]
    assert report["baseline"]["base"] == report["baseline"]["next token"]  # the adapter is as it was drawn
    own = load_file(desk.folder / "solved" / "adapter_model.safetensors")
    assert all(not value.any() for name, value in own.items() if ".lora_B." in name)
    assert domainkit.load(desk.folder / "solved").translate("贷款损失")[0] in {id for id, _, _ in TERMS}
    dry = command(*desk.line(desk.folder / "dry", "--task", "terms", "--dry-run"))
    assert dry.code == 0 and "0 sequences to train on" in dry.out


def test_attention_can_be_steered_and_the_bias_is_kept(desk: Desk) -> None:
    folder = recipes.finetune(desk.request(desk.folder / "steered", tasks=("lm",), overrides=("bits=32", "steer=true")))
    run = domainkit.load(folder)
    assert run.top.steer is not None
    bias = load_file(folder / "heads.safetensors")["(steer).bias"]
    assert bias.abs().sum() > 0 and torch.equal(run.top.steer.bias, bias)
    leaning = run.bits_per_byte(TEXT)
    with torch.no_grad():
        run.top.steer.bias.zero_()
    upright = run.bits_per_byte(TEXT)
    assert upright["adapted"] != leaning["adapted"] and upright["base"] == leaning["base"]


def test_without_its_glossary_a_run_keeps_the_bases_tokens(desk: Desk) -> None:
    ended = command(*desk.line(desk.folder / "without", "--no-glossary", "--bits", "32"))
    assert ended.code == 0, ended.err
    assert "terms" in ended.err  # said to be left out
    record = bundle.read(desk.folder / "without")
    assert record.glossary == {} and set(record.tasks) == {"lm", "regulation"}
    own = load_base(desk.base, bits=32).tokenizer
    assert AutoTokenizer.from_pretrained(desk.folder / "without").encode(TEXT) == own.encode(TEXT)
    assert bundle.TOKENS not in " ".join(load_file(desk.folder / "without" / "adapter_model.safetensors"))


def test_terms_cannot_be_asked_without_a_glossary(desk: Desk) -> None:
    ended = command(*desk.line(desk.folder / "asked", "--no-glossary", "--task", "terms"))
    assert ended.code == 1 and "glossary" in ended.err
    assert not (desk.folder / "asked").exists()


def test_a_dry_run_counts_the_new_tokens_and_writes_nothing(desk: Desk) -> None:
    ended = command(*desk.line(desk.folder / "dry", "--dry-run"))
    assert ended.code == 0 and "rows of its new tokens" in ended.out
    assert not (desk.folder / "dry").exists()


def test_a_faulty_glossary_is_told_before_anything_is_loaded(desk: Desk, tmp_path: Path) -> None:
    shutil.copytree(desk.domain, tmp_path / "desk")
    lines = (tmp_path / "desk" / "desk.tsv").read_text().splitlines()
    (tmp_path / "desk" / "desk.tsv").write_text("\n".join([*lines, lines[1], "x\t\t逾期\t\tcredit\thand"]))
    broken = replace(desk, domain=tmp_path / "desk", base=tmp_path / "no-base")
    with pytest.raises(UserError, match=r"(?s)faults.*belongs to line 2 too.*'en' is empty"):
        recipes.finetune(broken.request(tmp_path / "run"))
