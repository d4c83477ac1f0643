"""What follows from an estimate, and how both are said."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from domainkit import memory
from domainkit.advice import ROOM, Advice, Machine, advise, at_once, lines, shown
from domainkit.estimate import Data, Estimate, Phase
from domainkit.spec import Training

GB = 10**9
DATA = Data({"lm": (90, 10)}, 50_000, {"lm": 150_000}, 512, 200.0, False, 0)
PLAN = Estimate(
    base="big", training=Training(bits=4), data=DATA, parameters=7 * GB, weights=4 * GB, learning=123_456, rows=0,
    disk=50_000_000, phases=(Phase("load the base", 18 * GB, 14 * GB), Phase("trunk", 5 * GB, seconds=100),
                             Phase("train the top", 6 * GB, GB, 5000.0)),
    on_disk=0, needed={4: 5 * GB, 8: 9 * GB, 16: 17 * GB, 32: 32 * GB}, streamed=2 * GB, trunk=5 * GB, batch=GB,
)  # fmt: skip


def machine(gigabytes: float, cores: int = 4) -> Machine:
    return Machine(int(gigabytes * GB / ROOM) + 1, cores)


@pytest.mark.parametrize(
    ("gigabytes", "bits", "stream"),
    [(40, 32, False), (17, 16, False), (16.9, 8, False), (5, 4, False), (3, None, True), (1, None, False)],
)
def test_the_most_bits_that_fit_are_told_and_streaming_where_none_do(
    gigabytes: float, bits: int | None, stream: bool
) -> None:
    advice = advise(PLAN, machine(gigabytes))
    assert (advice.bits, advice.stream) == (bits, stream)


def test_files_that_are_mapped_need_no_room() -> None:
    assert [phase.needed for phase in PLAN.phases] == [4 * GB, 5 * GB, 5 * GB] and PLAN.peak == 18 * GB


@pytest.mark.parametrize(
    ("gigabytes", "rows", "said"),
    [
        (4.75, 6, "batch: 8 rows of 512 tokens, 6 at once: a step is put together from 2 micro-batches"),
        (4.1, 0, "batch: 8 rows of 512 tokens: not one fits"),
        (5, 8, "batch: 8 rows of 512 tokens fit at once"),  # no room for more
        (6, 16, "fit at once, up to 16 would"),  # the work of a step is 1 GB: twice that fits
        (100, 128, "up to 128 would"),  # no more than 16 times what is set
    ],
)
@pytest.mark.parametrize("micro", [0, 4])
def test_a_batch_is_put_together_from_what_fits(gigabytes: float, rows: int, said: str, micro: int) -> None:
    training = Training(batch=8, micro_batch=micro)
    estimate = replace(PLAN, training=training, batch=GB if not micro else GB // 2)
    phases = tuple(replace(p, peak=p.peak - (GB - estimate.batch) * (p.name == "train the top")) for p in PLAN.phases)
    estimate = replace(estimate, phases=phases)
    assert advise(estimate, machine(gigabytes)).rows == rows
    told = "4 at once" if micro and rows else said  # what the run will do, whatever would fit
    assert any(told in line for line in lines(estimate, machine(gigabytes)))


def test_where_nothing_is_trained_the_batch_stays_as_it_is() -> None:
    assert advise(replace(PLAN, phases=PLAN.phases[:2], batch=0), machine(20)).rows == 1


def test_half_of_the_free_memory_is_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GB, total=64 * GB))
    assert [at_once(GB, batch) for batch in (1, 4, 32)] == [1, 4, 4]
    assert at_once(GB, 32, beside=5 * GB) == 2
    assert at_once(10 * GB, 32) == 1  # there is no smaller step
    assert at_once(0, 32) == 32  # nothing is trained
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GB, total=4 * GB))
    assert at_once(GB, 32) == 1  # a container's share


@pytest.mark.parametrize(("gigabytes", "cores", "workers"), [(20, 2, 2), (20, 64, 3), (9, 64, 1), (4, 64, 0)])
def test_workers_are_as_many_as_memory_and_cores_allow(gigabytes: float, cores: int, workers: int) -> None:
    assert advise(PLAN, machine(gigabytes, cores)).workers == workers


@pytest.mark.parametrize(
    ("bits", "gigabytes", "said"),
    [
        (4, 40, "bits: 4 fit, 32 would"),
        (32, 10, "bits: 32 do not fit, 8 do: --set bits=8"),
        (4, 3, "bits: none fit; 4 with the layers on disk, one at a time, take 2.00 GB: --set stream=always"),
        (4, 1, "one at a time, take 2.00 GB, which is too much as well"),
    ],
)
def test_advice_is_said_in_short_lines(bits: int, gigabytes: float, said: str) -> None:
    told = list(lines(replace(PLAN, training=Training(bits=bits)), machine(gigabytes)))
    assert any(said in line for line in told) and max(map(len, told)) <= 120
    assert "4 bits 5.00 GB, 8 bits 9.00 GB, 16 bits 17.00 GB, 32 bits 32.00 GB" in told[0]


def test_all_figures_are_shown() -> None:
    console = Console(file=StringIO(), width=120)
    console.print(shown(PLAN, machine(20)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for needed in ("big: 7,000,000,000 parameters, 4.00 GB in 4 bits", "123,456 parameters", "90 sequences to train on",
                   "50,000 tokens once, counted", "150,000 tokens", "50.0 MB", "18.00 GB", "14.00 GB", "about 100 s",
                   "about 83 min", "peak: 18.00 GB", "workers: 3"):  # fmt: skip
        assert needed in text, needed
    assert "glossary" not in text and "on disk" not in text
    console.print(shown(replace(PLAN, on_disk=30), machine(20)))
    assert "on disk" in console.file.getvalue()  # type: ignore[attr-defined]


def test_this_machine_has_memory_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine.here()
    assert here.memory > GB and here.cores >= 1 and here.room < here.memory
    monkeypatch.setattr(memory, "total", lambda: 3 * GB)
    assert Machine.here().memory == 3 * GB  # a container's share


def test_advice_is_a_value() -> None:
    assert advise(PLAN, machine(20)) == Advice(16, False, 16, 3)
