"""A run on a packed base, from its glossary's tokens to a model without domainkit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import domainkit
from domainkit import recipes
from domainkit.model.quantize import quantize
from tests.test_recipes import Desk
from tests.test_recipes import domainkit as command
from tests.test_spoken import TEXT, make_desk

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A finished run of a domain with a glossary."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        patch.setattr("domainkit.model.precision.quick", lambda device: False)  # see `exact_products`
        made = make_desk(folder)
        made = replace(made, base=quantize(made.base, folder / "packed"))
        recipes.finetune(made.request(made.run, tasks=("lm", "terms")))
        yield made


def test_every_task_is_scored_and_the_report_names_the_packing(desk: Desk) -> None:
    read = {path.stem: json.loads(path.read_text()) for path in (desk.run / "reports").glob("*.json")}
    assert read.keys() == {"lm", "terms"}
    assert read["terms"]["scores"]["top1_all/contexts"]["value"] == 1  # rows are learned, written and looked up
    assert (read["lm"]["base"]["bits"], read["lm"]["base"]["packed"]) == (4, 32)
    assert "domainkit export" in (desk.run / "README.md").read_text()  # for PEFT alone cannot load this base


def test_it_is_loaded_written_with_and_exported(desk: Desk, tmp_path: Path) -> None:
    run = domainkit.load(desk.run)
    ids = run.base.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert any(i in run.base.added for i in ids[0].tolist())
    assert isinstance(run.generate("商业银行", max_new_tokens=3), str)
    assert command("export", str(desk.run), "--merged", str(tmp_path / "merged")).code == 0
    assert torch.equal(AutoTokenizer.from_pretrained(tmp_path / "merged")(TEXT, return_tensors="pt")["input_ids"], ids)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, run.model(input_ids=ids).logits, atol=1e-5)


def test_it_is_planned_and_evaluated_where_its_layers_are_on_disk(desk: Desk, tmp_path: Path) -> None:
    dry = command(*desk.line(tmp_path / "dry", "--dry-run"))
    assert dry.code == 0, dry.err
    assert "8 bits" not in dry.out  # which packed weights cannot be loaded in
    assert "16 bits" in dry.out
    before = json.loads((desk.run / "reports" / "lm.json").read_text())["scores"]
    other = recipes.finetune(desk.request(tmp_path / "run", tasks=("lm",), overrides=("stream=always",)))
    assert json.loads((other / "reports" / "lm.json").read_text())["scores"] == before
