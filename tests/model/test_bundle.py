"""The run folder: plain PEFT can read it, and nothing half-written, changed or foreign is ever taken for a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from domainkit.model import bundle
from domainkit.model.base import Base, load_base
from domainkit.model.bundle import Record
from domainkit.model.split import Trunk
from domainkit.model.top import DEFAULT, Top, adapt
from domainkit.spec import Training
from domainkit.types import UserError
from tests.tiny import make_base

IDS = [[1, 40, 41, 42, 200, 43, 7], [1, 5, 9, 77, 30, 31, 32]]
ADAPTERS = (DEFAULT, "triage")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, bits=32)


def fresh(base: Base, labels: int = 3, adapters: tuple[str, ...] = ADAPTERS) -> Top:
    heads = {"triage": nn.Linear(base.width, labels), "norms": nn.LayerNorm(base.width)}
    return adapt(base, heads, layers=2, rank=4, alpha=8, adapters=adapters)


def trained(base: Base, seed: int = 0, adapters: tuple[str, ...] = ADAPTERS) -> Top:
    """A top whose weights, buffers aside, are all different from a fresh one's."""
    torch.manual_seed(seed)
    top = fresh(base, adapters=adapters)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in top.trainable().values():
            value.add_(torch.randn(value.shape, generator=draw), alpha=0.1)
    return top.eval()


def record(base: Base) -> Record:
    return Record(
        domain="finance",
        base=base.facts,
        training=json.loads(json.dumps(asdict(Training(layers=2, rank=4, alpha=8)))),
        tasks={"triage": {"kind": "classify", "labels": ["A", "B", "C"], "adapter": "triage"}},
        seed=0,
        files={"lm.toml": "12ab"},
        data={"lm/fed": {"path": "fed.jsonl", "sha256": "34cd"}},
        versions={"domainkit": "0.1.0"},
    )


def save(folder: Path, top: Top, base: Base) -> None:
    bundle.save(folder, top, base, record(base), bundle.model_card(record(base), ("Macro F1 0.9.",)))


@pytest.fixture(scope="module")
def saved(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests change copies of it."""
    folder = tmp_path_factory.mktemp("runs") / "finance"
    save(folder, trained(base), base)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


@torch.no_grad()
def logits(top: Top, base: Base, adapter: str) -> Tensor:
    """What the top makes of the trunk's activations."""
    top.use(adapter)
    return top.model(inputs_embeds=Trunk(base, 2)(torch.tensor(IDS)), use_cache=False).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Plain PEFT

PLAIN = """
import json, sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
found = {}
for number, (base, run, bits, compute, adapters) in enumerate(json.loads(sys.argv[1])):
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=getattr(torch, compute))
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=four if bits == 4 else None)
    model = PeftModel.from_pretrained(model, run)
    for name in adapters:
        if name != "default":
            model.load_adapter(run + "/" + name, name)
        model.set_adapter(name)
        model.train()  # in eval mode bitsandbytes takes another kernel on some CPUs
        with torch.no_grad():
            found[f"{number}/{name}"] = model(input_ids=torch.tensor(json.loads(sys.argv[2]))).logits.contiguous()
    ours, theirs = (AutoTokenizer.from_pretrained(folder)("The bank").input_ids for folder in (run, base))
    assert ours == theirs
assert not any(name.split(".")[0] == "domainkit" for name in sys.modules)
save_file(found, sys.argv[3])
"""


def test_plain_peft_in_a_fresh_process_gives_the_same_logits(tmp_path: Path) -> None:
    cases: list[tuple[str, str, int, str, tuple[str, ...]]] = []
    expected: dict[str, Tensor] = {}
    for number, (family, bits) in enumerate([("llama", 32), ("llama", 4), ("qwen3", 32), ("deepseek_v3", 32)]):
        base = load_base(make_base(tmp_path / f"base{number}", family), bits=bits)
        top, folder = trained(base, seed=number), tmp_path / f"run{number}"
        save(folder, top, base)
        cases.append((str(base.path), str(folder), bits, base.facts["compute"], ADAPTERS))
        expected |= {f"{number}/{name}": logits(top, base, name) for name in ADAPTERS}
        assert not torch.allclose(expected[f"{number}/default"], logits(fresh(base), base, DEFAULT), atol=0.1)
    command = [sys.executable, "-c", PLAIN, json.dumps(cases), json.dumps(IDS), str(tmp_path / "logits.safetensors")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "missing adapter keys" not in done.stderr, done.stderr
    found = load_file(tmp_path / "logits.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_the_whole_adapted_model_agrees_with_the_top(run: Path, base: Base) -> None:
    expected = logits(trained(base), base, DEFAULT)
    model = bundle.whole(run, load_base(base.path, bits=32)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=torch.tensor(IDS)).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_run_holds_only_what_anybody_can_read(saved: Path) -> None:
    names = set(contents(saved))
    assert {"adapter_config.json", bundle.ADAPTER, bundle.HEADS, bundle.RECORD, "README.md", "tokenizer.json"} <= names
    assert {f"triage/{bundle.ADAPTER}", "triage/adapter_config.json"} <= names
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".txt", ".jinja", ".md"}
    assert not [path for path in saved.rglob("*") if path.name.startswith(".")]  # no draft is left


# Back again


def test_restore_brings_back_every_weight_and_head(run: Path, base: Base) -> None:
    source, top = trained(base), fresh(base)  # their heads are drawn differently
    other = logits(top, base, DEFAULT)
    bundle.restore(run, top)
    expected, found = source.state_dict(), top.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for name in ADAPTERS:
        assert torch.equal(logits(top.eval(), base, name), logits(source, base, name))
    assert not torch.allclose(logits(source, base, DEFAULT), other, atol=0.1)
    assert not torch.allclose(logits(source, base, DEFAULT), logits(source, base, "triage"), atol=0.1)


def test_restore_refuses_weights_the_top_has_no_place_for(run: Path, base: Base) -> None:
    shallow = adapt(base, {}, layers=1, rank=4, alpha=8)
    with pytest.raises(UserError, match=r"unknown weights, first .*layers\.2\."):
        bundle.restore(run, shallow)


def test_the_record_comes_back(run: Path, base: Base) -> None:
    found = bundle.read(run)
    assert found.sha256.keys() >= {bundle.ADAPTER, bundle.HEADS, f"triage/{bundle.ADAPTER}"}
    assert Record(**{**vars(found), "sha256": {}}) == record(base)


def test_the_card_names_the_base_and_says_how_to_load(run: Path, base: Base) -> None:
    card = (run / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert base.sha256 in card and "AutoPeftModelForCausalLM.from_pretrained" in card and "- Macro F1 0.9." in card


# What is refused

PROTECTED = (bundle.ADAPTER, f"triage/{bundle.ADAPTER}", bundle.HEADS, "adapter_config.json", "tokenizer.json")


@pytest.mark.parametrize("name", PROTECTED)
def test_a_changed_file_is_refused(run: Path, name: str) -> None:
    path = run / name
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 80').replace("bank", "blank") + " ")
    else:
        weights = load_file(path)
        next(iter(weights.values())).view(-1)[0] += 1e-3
        save_file(weights, path)
    with pytest.raises(UserError, match=rf"{name}: changed since training \(now [0-9a-f]{{64}}, was [0-9a-f]{{64}}\)"):
        bundle.read(run)


@pytest.mark.parametrize("name", PROTECTED)
def test_a_missing_file_is_refused(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: changed since training \(now missing"):
        bundle.read(run)


def test_a_record_with_settings_of_another_version_is_refused(run: Path) -> None:
    told = json.loads((run / bundle.RECORD).read_text())
    told["training"]["batch_tokens"] = told["training"].pop("batch")
    (run / bundle.RECORD).write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"another version of domainkit.*train again"):
        bundle.read(run)


def test_no_run_and_a_damaged_record_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run here.*domainkit finetune"):
        bundle.read(tmp_path / "nowhere")
    path = run / bundle.RECORD
    whole = path.read_text()
    for damaged in (whole[:100], whole.replace('"seed"', '"sead"'), ""):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"domainkit\.json: damaged record"):
            bundle.read(run)


def test_another_base_is_refused_naming_both(run: Path, base: Base, tmp_path: Path) -> None:
    other = load_base(make_base(tmp_path / "other", seed=1), bits=32)
    bundle.check_base(bundle.read(run), base)
    with pytest.raises(UserError) as error:
        bundle.check_base(bundle.read(run), other)
    for part in (base.sha256, other.sha256, base.name, other.name):
        assert part in str(error.value)
    assert base.sha256 != other.sha256


# Killed while saving


@pytest.mark.parametrize("over", ["nothing", "an older run"])
def test_killed_at_any_rename_it_is_the_old_run_or_none(
    saved: Path, base: Base, tmp_path: Path, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, new = os.replace, trained(base, seed=9)
    save(tmp_path / "new", new, base)
    finished = contents(tmp_path / "new")
    assert finished[bundle.ADAPTER] != contents(saved)[bundle.ADAPTER]
    for number in range(len(finished) + 1):
        folder, calls = tmp_path / f"killed {number}", 0
        if over == "an older run":
            shutil.copytree(saved, folder)

        def dying(*args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > number:  # noqa: B023 (called within this turn of the loop)
                raise KeyboardInterrupt
            replace(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            if number < len(finished):
                with pytest.raises(KeyboardInterrupt):
                    save(folder, new, base)
                with pytest.raises(UserError, match="no finished run here"):
                    bundle.read(folder)
            else:
                save(folder, new, base)
        if number in (1, len(finished)):  # saving again mends it
            save(folder, new, base)
            bundle.read(folder)
            assert contents(folder) == finished


def test_killed_before_anything_is_renamed_the_old_run_stands(
    run: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run)
    monkeypatch.setattr(bundle, "digest", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(run, trained(base, seed=9), base)
    monkeypatch.undo()
    bundle.read(run)
    assert {name: value for name, value in contents(run).items() if not name.startswith(".new")} == before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(30, "Read-only file system"), "cannot write: read-only"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk is full"),
    ],
    ids=["full", "read-only", "full, says safetensors"],
)
def test_a_disk_that_takes_nothing_is_one_clear_error(
    run: Path, base: Base, error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(UserError, match=told):
        save(run, trained(base, seed=9), base)
    monkeypatch.undo()
    bundle.read(run)  # the old run still stands
