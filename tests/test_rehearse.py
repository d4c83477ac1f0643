"""A pass without numbers makes the tensors that the real pass makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from domainkit.model.base import Base, load_base
from domainkit.model.outline import outline
from domainkit.model.split import Trunk
from domainkit.model.top import adapt
from domainkit.nets.meter import Meter
from domainkit.rehearse import Need
from tests.tiny import FAMILIES, make_base


def trunk(base: Base) -> int:
    ids = torch.zeros(4, 64, dtype=torch.long)
    with Meter() as meter:
        Trunk(base, 2, (1,))(ids)
    return meter.peak


def step(base: Base) -> int:
    causal: Any = adapt(base, {}, layers=2).model.get_base_model()
    given = torch.zeros(4, 64, 64)
    with Meter() as meter:
        out = causal.base_model(inputs_embeds=given, use_cache=False)
        out.last_hidden_state.float().sum().backward()
    return meter.peak


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_passes_take_the_bytes_of_real_ones(family: str, attention: str, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", family)
    real = load_base(folder, bits=32, attention=attention)
    drawn = outline(str(folder), bits=32, attention=attention, context=64)
    for run in (trunk, step):
        with torch.device("meta"):
            told = run(drawn)
        assert told == pytest.approx(run(real), rel=0.1), run.__name__


def test_what_follows_one_another_takes_the_most_and_what_is_held_together_the_sum() -> None:
    first, second = Need(10, 4), Need(7, 6)
    assert Need.most([first, second]) == Need(10, 6) and Need.most([]) == Need()
    assert first + second == Need(17, 10)
    assert Need.pieces(100, 10) == Need(100, 100) and Need.pieces(2**30, 2**26) == Need(2**30, 0)
