"""What goes wrong on a desk: one clear error, a non-zero exit, nothing lost. All through the command line."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from domainkit import claim, recipes
from domainkit.data.tokens import sequences
from domainkit.fit import TopTrainer
from domainkit.model import bundle
from domainkit.model.folder import read_tokenizer
from domainkit.model.store import Store
from domainkit.types import Example
from tests.test_recipes import (
    Desk,
    Ended,
    domainkit,
    make_desk,
    make_domain,
    read_report,
    rows_of,
    same_weights,
    snapshot,
    write_rows,
)
from tests.tiny import make_base


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        yield make_desk(folder, overrides=("epochs=1",))


@pytest.fixture
def desk(shared: Desk, tmp_path: Path) -> Desk:
    """The shared desk with domain and finished run of its own, to be damaged freely."""
    run, domain = tmp_path / "runs" / "desk", tmp_path / "desk"
    shutil.copytree(shared.run, run)
    shutil.copytree(shared.domain, domain)
    return Desk(tmp_path, shared.base, domain, run)


def fault(ended: Ended, *needed: object) -> str:
    """The one error a command ended with; it says everything `needed` and nothing else went wrong."""
    faults = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 1 and len(faults) == 1, ended
    assert "Traceback" not in ended.err and not ended.out
    message = ended.err[ended.err.index("error: ") :]
    for text in needed:
        assert str(text) in message
    return message


def refused(desk: Desk, *more: str, needed: tuple[object, ...], base: Path | None = None) -> None:
    """`finetune --overwrite` over the finished run is refused, and the run is as it was."""
    before = snapshot(desk.run)
    line = ["finetune", str(desk.domain), "--base", str(base or desk.base), "--out", str(desk.run), "--overwrite"]
    fault(domainkit(*line, *more), *needed)
    assert snapshot(desk.run) == before


# Data


def test_an_empty_file(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "news.jsonl").touch()
    refused(desk, "--data", f"{tmp_path}/news.jsonl", needed=(tmp_path / "news.jsonl", "the file is empty", "instead:"))


def test_a_file_of_blanks(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "news.txt").write_text("  \n\n")
    refused(desk, "--data", f"{tmp_path}/news.txt", needed=(tmp_path / "news.txt", "holds no document", "instead:"))


def test_no_file(desk: Desk, tmp_path: Path) -> None:
    refused(desk, "--data", f"lm={tmp_path}/news.jsonl", needed=(tmp_path / "news.jsonl", "no such file", "instead:"))


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "latin1"])
def test_wrong_encoding(desk: Desk, tmp_path: Path, encoding: str) -> None:
    text = "Le taux d'intérêt a été relevé" if encoding == "latin1" else "商业银行应当按照规定提取贷款损失准备"
    file = tmp_path / "news.jsonl"
    file.write_bytes((json.dumps({"text": text * 5}, ensure_ascii=False) + "\n").encode(encoding))
    refused(desk, "--data", str(file), needed=(f"{file}:1", "not UTF-8", encoding.upper(), f"iconv -f {encoding}"))


def test_broken_line_7_of_10(desk: Desk, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "news.jsonl", [{"text": f"the bank raised rate number {i} again"} for i in range(10)])
    lines = file.read_text().splitlines()
    lines[6] = lines[6][:-2]
    file.write_text("\n".join(lines))
    refused(desk, "--data", str(file), needed=(f"{file}:7", "not valid JSON", "10 lines read", "one JSON object per"))


def test_bad_data_does_not_cost_an_unfinished_run(desk: Desk, tmp_path: Path) -> None:
    """--overwrite may throw away what was learned, but only once there is something to put in its place."""
    (tmp_path / "news.jsonl").touch()
    (desk.run / claim.WORK).mkdir()
    (desk.run / claim.WORK / "run.json").write_text("{}")
    refused(desk, "--data", f"{tmp_path}/news.jsonl", needed=("the file is empty",))


def test_texts_without_labels(desk: Desk, tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "own.jsonl", [{"text": f"a creditor shall disclose charge {i} early"} for i in range(3)]
    )
    refused(desk, "--data", f"regulation={file}", needed=("3 examples have no label", "own.jsonl:1", "instead:"))


def test_bad_data_for_eval_leaves_the_reports(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "news.jsonl").write_text('{"title": "no text"}\n')
    before = snapshot(desk.run)
    ended = domainkit("eval", str(desk.domain), "--run", str(desk.run), "--data", f"{tmp_path}/news.jsonl")
    fault(ended, f"{tmp_path}/news.jsonl:1", "no key 'text', found ['title']", "instead:")
    assert snapshot(desk.run) == before


def test_a_document_longer_than_the_context_becomes_several_windows(desk: Desk, tmp_path: Path) -> None:
    text = " ".join(f"On day {i} the bank raised its rate of interest, 银行提取贷款损失准备." for i in range(200))
    (tmp_path / "long.txt").write_text(text)
    ended = domainkit(
        "eval", str(desk.domain), "--run", str(desk.run), "--task", "lm", "--data", f"{tmp_path}/long.txt",
        "--out", str(tmp_path / "reports"),
    )  # fmt: skip
    assert ended.code == 0 and "error" not in ended.err
    row = next(row for row in rows_of(read_report(tmp_path, "lm"), "Held-out text") if row["slice"] == "desk-und")
    assert (row["documents"], row["bytes"]) == (1, len(text.encode()))
    tokenizer = read_tokenizer(desk.base)
    windows = list(sequences(Example(text), tokenizer, 0, context=64))
    assert len(windows) > 80 and max(len(window.ids) for window in windows) <= 64
    assert "".join(str(tokenizer.decode(list(window.ids[1:]))) for window in windows) == text


# Names


def test_unknown_domain(desk: Desk) -> None:
    message = fault(domainkit("finetune", "finanse", "--out", str(desk.run)))
    known = "['biored', 'finance', 'medical']"
    assert message.startswith(f"error: unknown domain 'finanse'; instead: 'finance' (one of {known})")
    fault(domainkit("eval", str(desk.folder / "nowhere"), "--run", str(desk.run)), "unknown domain", "domain.toml")


def test_a_folder_that_is_no_domain(desk: Desk) -> None:
    (desk.domain / "domain.toml").unlink()
    refused(desk, needed=(desk.domain, "no domain.toml here", "instead:"))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (("--task", "regulatoin"), "in domain desk"),
        (("--data", "regulatoin=x.jsonl"), "--data regulatoin=x.jsonl"),
        (("--set", "regulatoin.max_tokens=9"), "--set"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_unknown_task(desk: Desk, options: tuple[str, str], where: str) -> None:
    refused(desk, *options, needed=("unknown task 'regulatoin'", where, "instead:", "'lm', 'regulation'"))


def test_a_task_the_run_was_not_trained_on(desk: Desk, tmp_path: Path) -> None:
    run = tmp_path / "lm-run"
    assert domainkit(*desk.line(run, "--task", "lm", "--limit", "9", "--set", "epochs=1")).code == 0
    fault(domainkit("eval", str(desk.domain), "--run", str(run), "--task", "regulation"), "regulation", "instead:")


def test_unknown_task_in_a_config_file(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[tasks.regulatoin]\nmax_tokens = 9\n")
    refused(desk, "--config", str(file), needed=("unknown task 'regulatoin'", file, "instead:"))


@pytest.mark.parametrize(
    ("setting", "key", "close"), [("epoch=2", "epoch", "epochs"), ("lm.token=9", "token", "tokens")]
)
def test_unknown_setting(desk: Desk, setting: str, key: str, close: str) -> None:
    refused(desk, "--set", setting, needed=(f"unknown key ['{key}']", "--set", "known:", f"instead: {close}"))


@pytest.mark.parametrize(
    ("file", "line", "key"),
    [
        ("domain.toml", "epochz = 2", "epochz"),
        ("lm.toml", "tilte = 'x'", "tilte"),
        ("my.toml", "trainin = {}", "trainin"),
    ],
)
def test_unknown_setting_in_a_file(desk: Desk, tmp_path: Path, file: str, line: str, key: str) -> None:
    path = tmp_path / file if file == "my.toml" else desk.domain / file
    path.write_text((path.read_text() if path.exists() else "") + line + "\n")
    more = ["--config", str(path)] if file == "my.toml" else []
    refused(desk, *more, needed=(f"unknown key ['{key}']", path, "known:", "instead:"))


def test_unknown_setting_of_a_kind(desk: Desk) -> None:
    path = desk.domain / "regulation.toml"
    path.write_text(path.read_text().replace("max_tokens", "max_token"))
    refused(desk, needed=("unknown key ['max_token']", path, "known:", "instead: max_tokens"))


def test_a_value_of_the_wrong_type(desk: Desk) -> None:
    refused(desk, "--set", "epochs=many", needed=("--set", "epochs: 'many' is a string, not a whole number"))


# The base


def test_a_base_with_a_missing_shard(desk: Desk, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(desk.base, base)
    (base / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(desk.base).save_pretrained(base, max_shard_size="200KB")
    shards = sorted(base.glob("model-*.safetensors"))
    shards[1].unlink()
    needed = (base, f"1 of {len(shards)} weight files are missing: {shards[1].name}", "instead:")
    refused(desk, base=base, needed=needed)
    fault(domainkit("base", "check", str(base)), *needed)


def test_no_base(desk: Desk, tmp_path: Path) -> None:
    refused(
        desk, base=tmp_path / "nowhere", needed=(tmp_path / "nowhere", "no such folder", "instead:", "smollm2-135m")
    )


# The disk

MOMENTS: dict[str, tuple[Any, str]] = {  # what is called just before something is written
    "activations": (Store, "put"),
    "checkpoint": (TopTrainer, "_save"),
    "optimizer": (TopTrainer, "_save_optimizer_and_scheduler"),
    "adapter": (recipes.bundle, "save"),
    "tokenizer": (PreTrainedTokenizerFast, "save_pretrained"),
    "report": (recipes, "publish"),
}


def mount(folder: Path, options: str) -> None:
    """Mount a tmpfs on `folder`; skips the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs to mount a small file system, which takes root: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real file system of 8 MB that holds the cache too."""
    disk = tmp_path / "disk"
    if shutil.which("mount") is None:
        pytest.skip("needs the program mount")
    mount(disk, "size=8m")
    monkeypatch.setenv("DOMAINKIT_CACHE", str(disk / "cache"))
    try:
        yield disk
    finally:
        ctypes.CDLL(None, use_errno=True).umount2(str(disk).encode(), 2)  # 2: detach, though files are still mapped


def fill(disk: Path) -> None:
    """Leave not a byte free."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC


def before_each(patch: pytest.MonkeyPatch, moment: str, first: Callable[[], None]) -> None:
    owner, name = MOMENTS[moment]
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        first()
        return original(*arguments, **options)

    patch.setattr(owner, name, wrapped)


def nothing_lost(desk: Desk, out: Path, before: dict[str, bytes], moment: str) -> None:
    """What lay in `out` is still there (from the report on, the new run has replaced it), and resuming finishes."""
    if moment != "report":
        assert {name: content for name, content in snapshot(out).items() if name in before} == before
    ended = domainkit(*desk.line(out, "--set", "epochs=1", "--resume"))
    assert ended.code == 0, ended
    assert same_weights(out, desk.run) and snapshot(out).keys() == snapshot(desk.run).keys()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk(desk: Desk, small_disk: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    out = small_disk / "run"
    shutil.copytree(desk.run, out)
    before = snapshot(out)
    with monkeypatch.context() as patch:
        before_each(patch, moment, lambda: fill(small_disk))
        ended = domainkit(*desk.line(out, "--set", "epochs=1", "--overwrite"))
    fault(ended, "the disk is full", small_disk, "instead: free some room")
    (small_disk / "filler").unlink()
    nothing_lost(desk, out, before, moment)


@pytest.mark.parametrize("moment", ["activations", "checkpoint", "adapter", "report"])
def test_a_full_disk_in_any_room(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """As above, where no file system can be mounted: forcing data to disk fails."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    shutil.copytree(desk.run, out)
    before = snapshot(out)
    full = False

    def fill_up() -> None:
        nonlocal full
        full = True

    def fsync(handle: int, really: Callable[[int], None] = os.fsync) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(handle)

    with monkeypatch.context() as patch:
        before_each(patch, moment, fill_up)
        patch.setattr(os, "fsync", fsync)
        ended = domainkit(*desk.line(out, "--set", "epochs=1", "--overwrite"))
    fault(ended, "the disk is full", tmp_path, "instead: free some room")
    nothing_lost(desk, out, before, moment)


@pytest.mark.slow
def test_a_disk_that_fills_at_any_write(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third time that something is forced to disk, there is no room for it or for anything after it."""

    def run(name: str, room: float) -> tuple[Ended, int]:
        """A run from nothing with room for so many writes, and how many it made."""
        written = 0

        def fsync(handle: int, really: Callable[[int], None] = os.fsync) -> None:
            nonlocal written
            written += 1
            if written > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            really(handle)

        monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / name / "cache"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            ended = domainkit(*desk.line(tmp_path / name / "run", "--set", "epochs=1"))
        return ended, written

    ended, total = run("whole", float("inf"))
    assert ended.code == 0 and total > 30
    for room in range(0, total, 3):
        fault(run(str(room), room)[0], "the disk is full", tmp_path / str(room), "instead: free some room")
        nothing_lost(desk, tmp_path / str(room) / "run", {}, "any")


def test_a_folder_below_a_file(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    out = tmp_path / "notes" / "run"
    fault(domainkit(*desk.line(out)), out, "cannot write: not a directory", "instead: a folder you may write to")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_read_only_folder(desk: Desk, small_disk: Path) -> None:
    out = small_disk / "run"
    shutil.copytree(desk.run, out)
    before = snapshot(out)
    mount(small_disk, "remount,ro")
    needed = ("cannot write: read-only file system", "instead: a folder you may write to")
    fault(domainkit(*desk.line(out, "--overwrite")), out, *needed)
    fault(domainkit(*desk.line(small_disk / "new")), small_disk / "new", *needed)
    assert snapshot(out) == before


def test_eval_into_a_read_only_folder(desk: Desk, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINKIT_CACHE", str(desk.folder / "cache"))
    mount(small_disk, "remount,ro")
    line = ["eval", str(desk.domain), "--run", str(desk.run), "--task", "regulation", "--out", f"{small_disk}/reports"]
    fault(domainkit(*line), small_disk / "reports", "cannot write: read-only file system", "instead:")


def test_a_read_only_cache(desk: Desk, small_disk: Path) -> None:
    before = snapshot(desk.run)
    mount(small_disk, "remount,ro")
    ended = domainkit(*desk.line(desk.run, "--overwrite"))
    fault(ended, small_disk / "cache", "cannot write: read-only file system", "instead:")
    assert {name: content for name, content in snapshot(desk.run).items() if name in before} == before


def test_a_read_only_folder_in_any_room(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, where no file system can be mounted: a file that is to be written cannot be opened."""

    def refuse(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    refused(desk, needed=(desk.run, "cannot write: read-only file system", "instead: a folder you may write to"))


def test_a_damaged_run_is_refused(desk: Desk) -> None:
    (desk.run / bundle.RECORD).write_text('{"domain": ')
    fault(domainkit("eval", str(desk.domain), "--run", str(desk.run)), desk.run / bundle.RECORD, "damaged record")


def test_a_run_of_another_domain_is_refused(desk: Desk, tmp_path: Path) -> None:
    other = make_domain(tmp_path / "other", documents=2)
    fault(domainkit("eval", str(other), "--run", str(desk.run)), desk.run, "for domain desk, not other")


def test_an_export_of_no_finished_run_on_its_own_base(desk: Desk, tmp_path: Path) -> None:
    line = ["export", str(desk.run), "--merged", str(tmp_path / "merged"), "--base"]
    other = make_base(tmp_path / "other", seed=1)
    fault(domainkit(*line, str(other)), "instead:", desk.base)
    fault(domainkit(*line, str(tmp_path / "nowhere")), "no such folder", "instead:")
    (desk.run / bundle.RECORD).unlink()
    fault(domainkit(*line, str(desk.base)), desk.run, "instead:")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["desk", "other", "runs"]  # no model, no draft of one
