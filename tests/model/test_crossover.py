"""From which length LSH is faster: one measurement per device, kept in the user's cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from domainkit.model import attention, crossover
from domainkit.model.crossover import AT, LONGEST, meeting


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path))
    crossover.crossover.cache_clear()
    yield tmp_path / "crossover"
    crossover.crossover.cache_clear()


def asked() -> int:
    crossover.crossover.cache_clear()  # as a new process does
    return crossover.crossover("cpu", torch.float32)


@pytest.mark.parametrize(("dense", "lsh", "tokens"), [(1.0, 2.0, 2 * AT), (2.0, 1.0, AT), (1.0, 1000.0, LONGEST)])
def test_where_a_square_and_a_line_meet(dense: float, lsh: float, tokens: int) -> None:
    assert meeting(dense, lsh) == tokens


def test_it_is_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([20_000, 30_000])
    monkeypatch.setattr(crossover, "measure", lambda *of: next(measured))
    assert asked() == asked() == 20_000
    [path] = cache.iterdir()
    assert json.loads(path.read_text())["crossover"] == 20_000
    path.write_text("{")  # a damaged file is written anew
    assert asked() == asked() == 30_000


def test_a_worker_with_fewer_threads_goes_by_what_was_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would attend in another way than who started it, to the same text."""
    measured = iter([20_000, 30_000])
    monkeypatch.setattr(crossover, "measure", lambda *of: next(measured))
    first = asked()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert (first, asked()) == (20_000, 20_000)


def test_other_code_is_measured_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([20_000, 30_000])
    monkeypatch.setattr(crossover, "measure", lambda *of: next(measured))
    first = asked()
    monkeypatch.setattr(crossover, "_code", lambda: "of a later version")
    assert (first, asked(), asked()) == (20_000, 30_000, 30_000)


def test_a_cache_that_cannot_be_written_is_no_fault(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr(crossover, "measure", lambda *of: 20_000)
    assert asked() == 20_000


def test_what_is_measured_is_within_the_bounds(one_thread: None) -> None:
    assert AT <= crossover.measure("cpu", torch.float32) <= LONGEST


def test_short_inputs_ask_for_no_measurement(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "measure", lambda *of: pytest.fail("measured"))
    assert attention._short(AT - 1, "cpu")


def test_long_inputs_go_by_the_measurement(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "measure", lambda *of: 20_000)
    assert attention._short(19_999, "cpu")
    assert not attention._short(20_000, "cpu")
