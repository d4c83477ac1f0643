"""Routed experts on disk: the same bits as in memory, few at a time, each once, and only those that are chosen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from domainkit.model import routed
from domainkit.model.base import Base, load_base
from domainkit.model.split import Trunk
from domainkit.model.streamed import Skeleton
from tests.tiny import make_base

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTH, KEPT, EXPERTS, CHOSEN = 4, 2, 4, 2
Read = dict[str, list[tuple[int, ...]]]  # layer → experts that were read together


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v3", "qwen3_moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp(request.param), request.param, layers=DEPTH, tied=False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """What is read, at most two experts at a time."""
    told: Read = defaultdict(list)
    real = Skeleton._read_few

    def reading(self: Skeleton, experts: nn.Module, prefix: str, each: Mapping[int, Any], few: Sequence[int]) -> None:
        real(self, experts, prefix, each, few)
        assert len(few) <= 2 and {len(value) for value in experts.parameters()} == {len(few)}
        told[prefix].append(tuple(few))

    monkeypatch.setattr(Skeleton, "_read_few", reading)
    monkeypatch.setattr(routed, "FEW", 2)
    yield told


def on_disk(folder: Path, bits: int) -> Base:
    return load_base(folder, bits=bits, stream="always", keep=KEPT)


def batches() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, shape, generator=draw) for shape in ((2, 9), (1, 1), (3, 20))]


@pytest.mark.parametrize("bits", [32, 16, 4])
def test_each_expert_is_read_once_for_all_batches(folder: Path, read: Read, bits: int) -> None:
    whole, base = load_base(folder, bits=bits), on_disk(folder, bits)
    passed: Counter[int] = Counter()
    below = Trunk(base, KEPT, (1,)).each(batches(), lambda batch: passed.update([batch]))
    for mine, ids in zip(below, batches(), strict=True):
        assert torch.equal(mine, Trunk(whole, KEPT, (1,))(ids))
    assert passed == {0: DEPTH - KEPT, 1: DEPTH - KEPT, 2: DEPTH - KEPT}
    dense = base.model.config.model_type.startswith("deepseek")  # their first layer has no experts
    assert len(read) == DEPTH - KEPT - dense
    assert all(found == [(0, 1), (2, 3)] for found in read.values())
    assert not any(value.is_meta is False for layer in base.layers()[:-KEPT] for value in layer.parameters())


def test_only_those_are_read_that_a_token_is_sent_to(folder: Path, read: Read) -> None:
    whole, base = load_base(folder, bits=32), on_disk(folder, 32)
    sent: dict[str, list[int]] = {}
    for name, module in whole.model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(
                lambda m, given, name=name: sent.update({name: given[1].unique().tolist()})
            )
    ids = torch.tensor([[7]])
    assert torch.equal(Trunk(base, KEPT)(ids), Trunk(whole, KEPT)(ids))
    assert read and all(found == [tuple(sent[name.rstrip(".")])] for name, found in read.items())
    assert all(len(found[0]) == CHOSEN < EXPERTS for found in read.values())


def test_a_pass_that_breaks_off_leaves_nothing_behind(
    folder: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = on_disk(folder, 32)
    sound = Trunk(base, KEPT).each(batches())
    real, calls = Trunk.step, 0

    def step(trunk: Trunk, number: int, states: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return real(trunk, number, states)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trunk, "step", step)
        Trunk(base, KEPT).each(batches())
    assert all(value.is_meta for layer in base.layers()[:-KEPT] for value in layer.parameters())
    assert all(torch.equal(*pair) for pair in zip(Trunk(base, KEPT).each(batches()), sound, strict=True))
