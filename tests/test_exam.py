"""Evaluation by workers: the figures of one process, to the last digit, from whichever process the answers come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from domainkit import recipes
from domainkit.claim import LOCK, WORK
from domainkit.exam import Exam, _packed, _unpacked
from domainkit.kinds import Portion
from domainkit.model import bundle
from domainkit.types import Example, Relation, Span, UserError
from domainkit.types import Sequence as Tokens
from domainkit.workers import Workers
from tests.clinic import make_clinic
from tests.test_recipes import domainkit as command
from tests.test_recipes import make_desk, snapshot

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not find_spec("datatrove"), reason="datatrove is missing: pip install 'domainkit[workers]'"),
]


@pytest.fixture(scope="module", params=["desk", "clinic"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Any]:
    """A finished run: of tasks that are tested on token sequences, or on documents."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINKIT_CACHE", str(folder / "cache"))
        yield make_desk(folder, overrides=("bits=32",)) if request.param == "desk" else make_clinic(folder)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts of each task."""
    monkeypatch.setattr("domainkit.kinds.TOGETHER", 4)


def figures(folder: Path) -> dict[str, Any]:
    """The reports in a folder without what tells time and memory."""
    found = {}
    for path in folder.glob("*.json"):
        fields = json.loads(path.read_text())
        del fields["seconds"], fields["peak_rss_mb"]
        fields["tables"] = [table for table in fields["tables"] if "econds" not in json.dumps(table)]
        found[path.stem] = fields
    return found


def evaluate(place: Any, out: Path, **more: Any) -> dict[str, Any]:
    recipes.evaluate(str(place.domain), run=place.run, out=out, **more)
    return figures(out)


@pytest.mark.usefixtures("at_once")
def test_workers_find_what_one_process_finds(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations that are new, too. Interrupted in its middle it goes on."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "a cache"))
    alone = evaluate(place, tmp_path / "one")
    assert set(alone) == set(bundle.read(place.run).tasks) and all(one["scores"] for one in alone.values())
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "another cache"))
    asked, call = list[int](), Exam.__call__

    def cut(self: Exam, number: int) -> None:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(number)
        call(self, number)

    out = tmp_path / "two"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Exam, "__call__", cut)
        evaluate(place, out, workers=Workers(2))
    again = list[int]()
    monkeypatch.setattr(Exam, "__call__", lambda self, number: (again.append(number), call(self, number)))
    assert evaluate(place, out, workers=Workers(2)) == alone
    assert asked == [0, 1] and again == list(range(2, 2 + len(again))) and len(again) > 2
    assert not (out / WORK).exists()


def test_two_evaluations_do_not_meet(place: Any, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / WORK).mkdir()
    with (
        FileLock(tmp_path / WORK / LOCK),
        pytest.raises(UserError, match=r"another process works on this run.*another --out"),
    ):
        evaluate(place, tmp_path, workers=Workers(2))


@pytest.mark.slow
def test_a_run_by_worker_processes(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of `finetune`, on processes of its own: the run, its reports and its activations are those of one process."""
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    line = ["finetune", str(place.domain), "--base", str(place.base), "--set", "bits=32"]
    for name, more in (("one", ()), ("two", ("--workers", "2"))):
        monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / f"cache of {name}"))
        ended = command(*line, "--out", str(tmp_path / name), *more)
        assert ended.code == 0, ended.err[-3000:]
    one, two = tmp_path / "one", tmp_path / "two"
    assert {name: value for name, value in snapshot(one).items() if name.endswith(".safetensors")} == {
        name: value for name, value in snapshot(two).items() if name.endswith(".safetensors")
    }
    assert figures(one / "reports") == figures(two / "reports")
    assert snapshot(one).keys() == snapshot(two).keys()
    caches = [snapshot(tmp_path / f"cache of {name}" / "activations") for name in ("one", "two")]
    assert caches[0] == caches[1] and caches[0]


def test_what_is_tested_goes_to_other_processes_as_it_is() -> None:
    span = Span(2, 9, "Disease", "D1,D2", ((2, 4), (6, 9)))
    document = Example(
        "一 text\nin two lines", (span,), (Relation("D1", "causes", "D2", 0.1 + 0.2),), "sum", "a", "1", "g"
    )
    sequence = Tokens((1, 2, 3), 7, "g", "finance-zh", "label")
    for portion in (Portion(8, (document, Example("no id"))), Portion(0, (), (sequence,), (sequence, sequence))):
        assert _unpacked(json.loads(_packed("task", portion))) == portion


def test_torchrun_and_workers_are_refused_together(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun's processes share the work already"):
        recipes.evaluate(str(place.domain), run=place.run, out=tmp_path, workers=Workers(2))
