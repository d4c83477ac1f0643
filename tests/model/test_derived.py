"""Derived values: made once, equal when found again, never another's, never damaged, and not without end."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domainkit.kinds import Prepared
from domainkit.model import derived
from domainkit.model.derived import derive
from domainkit.report import Table
from domainkit.types import Example, Sequence, Span

PREPARED = Prepared(
    (Sequence((1, 5, 300), 7, "group", offsets=((0, 0), (0, 2), (2, 7))),) * 2,
    (),
    labels=("a", "b"),
    gold=(Example("a \ud800 text", (Span(2, 3, "x", None, ((2, 3),)),), language="zh"),),
    tables=(Table("Facts", ("what", "how much"), (("share", 0.1), ("all", True))),),
    rivals={"train": [Example("债券")], "answers": {"bond": 7}},
)
TENSORS = (torch.randn(3, 2), torch.zeros(0, 4), torch.tensor(2.5, dtype=torch.float64), np.eye(3, dtype=bool))


def never() -> Any:
    raise AssertionError("it was there")


def test_a_value_is_made_once_and_found_as_it_was(tmp_path: Path) -> None:
    assert derive(tmp_path, "task", ["of"], lambda: PREPARED) == derive(tmp_path, "task", ["of"], never) == PREPARED
    for found in (derive(tmp_path, "head", [1], lambda: TENSORS), derive(tmp_path, "head", [1], never)):
        *tensors, array = found
        for mine, theirs in zip(tensors, TENSORS, strict=False):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        assert array.dtype == bool and np.array_equal(array, TENSORS[-1])
    assert derive(tmp_path, "proof", None, lambda: None) is derive(tmp_path, "proof", None, never) is None


@pytest.mark.parametrize("change", ["name", "of", "a tensor", "code", "versions"])
def test_what_follows_from_something_else_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    of = [PREPARED, torch.zeros(2)]
    derive(tmp_path, "task", of, lambda: "first")
    if change == "of":
        of[0] = replace(PREPARED, epochs=2)
    elif change == "a tensor":
        of[1] = torch.tensor([0.0, 1e-9])
    elif change != "name":
        monkeypatch.setattr(derived, change, lambda: "other")
    assert derive(tmp_path, "head" if change == "name" else "task", of, lambda: "second") == "second"


@pytest.mark.parametrize("harm", ["cut", "flipped", "another's", "empty"])
def test_a_damaged_value_is_named_and_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str) -> None:
    derive(tmp_path, "head", 1, lambda: TENSORS)
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    if harm == "another's":
        derive(tmp_path, "head", 2, lambda: "other")
        (other,) = set(tmp_path.iterdir()) - {file}
        other.rename(file)
    else:
        file.write_bytes({"cut": raw[:-1], "flipped": raw[:-1] + bytes([raw[-1] ^ 1]), "empty": b""}[harm])
    assert torch.equal(derive(tmp_path, "head", 1, lambda: TENSORS)[0], TENSORS[0])
    assert f"{file}: changed since it was written" in capsys.readouterr().err
    assert torch.equal(derive(tmp_path, "head", 1, never)[0], TENSORS[0])


def test_what_nobody_asked_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: torch.randn(1000) for name in "abcd"}
    for age, name in enumerate("abc"):
        derive(tmp_path, name, 0, lambda name=name: values[name])
        (file,) = tmp_path.glob(f"{name}-*")
        os.utime(file, (age, age))
    derive(tmp_path, "a", 0, never)  # asked for again
    monkeypatch.setattr(derived, "ROOM", 2.5 * file.stat().st_size)
    left = tmp_path / ".e-0.safetensors.1.new"  # by a killed process
    left.touch()
    os.utime(left, (0, 0))
    derive(tmp_path, "d", 0, lambda: values["d"])
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "d"}
    monkeypatch.setattr(derived, "ROOM", 0)
    derive(tmp_path, "b", 0, lambda: values["b"])
    assert {path.name[0] for path in tmp_path.iterdir()} == {"b"}  # what is needed now stays


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd:
        path: Path

    for odd in ({1, 2}, Odd(tmp_path)):
        with pytest.raises(TypeError, match="cannot be kept"):
            derive(tmp_path, "odd", 0, lambda odd=odd: odd)
    assert not list(tmp_path.iterdir())
