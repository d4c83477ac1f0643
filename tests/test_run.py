"""A finished run in a notebook: what `domainkit.load` gives is what the report promised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import domainkit
from domainkit import memory
from domainkit.data.mix import split
from domainkit.data.read import read
from domainkit.model import bundle
from domainkit.model.folder import fingerprint
from domainkit.run import Run
from domainkit.types import UserError
from tests.test_recipes import Desk, make_desk, snapshot
from tests.tiny import make_base


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        yield make_desk(folder, overrides=("bits=32",))


@pytest.fixture(scope="module")
def run(desk: Desk) -> Run:
    return domainkit.load(desk.run)


def held_out(desk: Desk, source: str) -> list[str]:
    """The texts of a source that the run was tested on."""
    return [example.text for example in split(read(desk.domain / "data" / f"{source}.jsonl"))[1]]


@pytest.mark.parametrize(("source", "name"), [("bank", "desk-en"), ("bank-zh", "desk-zh"), ("general", "general-en")])
def test_bits_per_byte_is_what_the_report_says(desk: Desk, run: Run, source: str, name: str) -> None:
    texts = held_out(desk, source)
    sizes = [len(text.encode()) for text in texts]
    found = [run.bits_per_byte(text) for text in texts]
    report, key = run.report("lm"), f"bits_per_byte/{name}"
    for which, score in (("adapted", report.scores[key]), ("base", report.baseline["base"][key])):
        mean = sum(one[which] * size for one, size in zip(found, sizes, strict=True)) / sum(sizes)
        assert mean == pytest.approx(score.value, rel=1e-3)  # the report's activations may be rounded to float16
    assert report.scores[key].value < report.baseline["base"][key].value  # so the two are not mixed up


def test_bits_per_byte_counts_every_window_of_a_long_text(run: Run) -> None:
    text = "The bank raised its rate of interest after a payment was due. " * 30
    assert len(list(run.base.tokenizer(text)["input_ids"])) > 5 * run.record.training["context"]
    whole, once = run.bits_per_byte(text), run.bits_per_byte(text[: len(text) // 30])
    assert whole["base"] == pytest.approx(once["base"], rel=0.25)


def test_classify_answers_as_the_report_says(desk: Desk, run: Run) -> None:
    examples = split(read(desk.domain / "data" / "paragraphs.jsonl"))[1]
    answers = run.classify([example.text for example in examples])
    right = sum(label == example.label for (label, _), example in zip(answers, examples, strict=True))
    assert right / len(examples) == pytest.approx(run.report("regulation").scores["accuracy"].value)
    assert all(0.5 <= probability <= 1.0 for _, probability in answers)  # the better one of two labels
    assert run.classify([examples[0].text], task="regulation") == answers[:1]


def test_one_text_does_not_change_the_answer_to_another(desk: Desk, run: Run) -> None:
    texts = held_out(desk, "paragraphs")[:4]
    together = run.classify(texts)
    for text, (label, probability) in zip(texts, together, strict=True):
        assert run.classify([text]) == [(label, pytest.approx(probability, abs=1e-5))]


def test_measuring_and_classifying_do_not_disturb_each_other(desk: Desk, run: Run) -> None:
    """They go through different adapters of the run."""
    text = held_out(desk, "bank")[0]
    bits, label = run.bits_per_byte(text), run.classify([text])
    assert run.bits_per_byte(text) == bits
    assert run.classify([text]) == label


def test_generate_is_the_plain_peft_models_greedy_continuation(desk: Desk, run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(desk.run)
    base = AutoModelForCausalLM.from_pretrained(desk.base)
    encoded = tokenizer("the bank raised", return_tensors="pt")
    plain = PeftModel.from_pretrained(base, desk.run).eval()
    with torch.no_grad():
        wanted = plain.generate(**encoded, max_new_tokens=8, do_sample=False)[0, encoded["input_ids"].shape[1] :]
        with plain.disable_adapter():
            untouched = plain.generate(**encoded, max_new_tokens=8, do_sample=False)[0, -len(wanted) :]
    said = run.generate("the bank raised", max_new_tokens=8)
    assert said == tokenizer.decode(wanted, skip_special_tokens=True)
    assert said != tokenizer.decode(untouched, skip_special_tokens=True)


def test_report_is_read_from_the_run(desk: Desk, run: Run) -> None:
    report = run.report("regulation")
    written = (desk.run / "reports" / "regulation.json").read_text(encoding="utf-8")
    assert json.loads(json.dumps(report.as_json())) == json.loads(written)
    with pytest.raises(UserError, match=r"nope\.json"):
        run.report("nope")


def test_loading_and_using_a_run_writes_nothing(desk: Desk) -> None:
    before = snapshot(desk.folder)
    run = domainkit.load(desk.run)
    run.classify(held_out(desk, "paragraphs")[:1])
    run.bits_per_byte("the bank raised its rate")
    assert snapshot(desk.folder) == before


def test_a_base_too_large_for_the_memory_answers_alike(desk: Desk, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 0)
    streamed = domainkit.load(desk.run)
    assert (run.base.streamed, streamed.base.streamed) == (0, 2)
    texts = held_out(desk, "paragraphs")[:3]
    assert streamed.classify(texts) == run.classify(texts)
    assert streamed.bits_per_byte(texts[0]) == run.bits_per_byte(texts[0])
    said = streamed.generate("the bank raised", max_new_tokens=8)
    assert said and said == run.generate("the bank raised", max_new_tokens=8)


def test_a_base_that_has_moved_is_named_anew(desk: Desk, tmp_path: Path) -> None:
    run, base = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(desk.run, run)
    shutil.copytree(desk.base, base)
    record = json.loads((run / bundle.RECORD).read_text(encoding="utf-8"))
    record["base"]["name"] = str(tmp_path / "gone")
    (run / bundle.RECORD).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="gone: no such folder"):
        domainkit.load(run)
    text = held_out(desk, "bank")[0]
    assert domainkit.load(run, base=str(base)).bits_per_byte(text) == domainkit.load(desk.run).bits_per_byte(text)


def test_another_base_is_refused_with_both_fingerprints(desk: Desk, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(UserError) as fault:
        domainkit.load(desk.run, base=str(other))
    assert fingerprint(desk.base) in str(fault.value) and fingerprint(other) in str(fault.value)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "triage/adapter_model.safetensors", "heads.safetensors"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_changed_weights_are_refused(desk: Desk, tmp_path: Path, name: str, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(desk.run, run)
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if damage == "missing":
        (run / name).unlink()
    with pytest.raises(UserError, match="changed since training") as fault:
        domainkit.load(run)
    assert name in str(fault.value)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run here.*domainkit finetune"):
        domainkit.load(tmp_path)


def test_an_empty_text_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="empty"):
        run.classify(["the bank raised its rate", ""])
    with pytest.raises(UserError, match="empty"):
        run.bits_per_byte("")


def test_an_unknown_task_is_refused_by_name(run: Run) -> None:
    with pytest.raises(UserError, match=r"'nope'.*regulation"):
        run.classify(["the bank raised its rate"], task="nope")


def test_a_task_of_another_kind_is_refused_by_name(run: Run) -> None:
    with pytest.raises(UserError, match=r"'lm'.*regulation"):
        run.classify(["the bank raised its rate"], task="lm")
