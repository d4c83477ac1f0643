"""Batches for reading: right activations, computed once, in little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from domainkit.model import passing, trunk
from domainkit.model.base import Base, load_base
from domainkit.model.passing import Passing
from domainkit.model.split import Trunk
from domainkit.model.top import adapt
from domainkit.types import Sequence as Tokens

CONTEXT = 32

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, bits=32)


def texts(count: int, first: int = 0) -> list[Tokens]:
    return [Tokens((1, *range(3 + i, 12 + i + i % 9)), 9, f"document {i}") for i in range(first, first + count)]


def test_activations_are_those_of_the_trunk_each_with_its_sequence(base: Base) -> None:
    cut, asked = Trunk(base, 2, (1,)), texts(6)
    met = []
    for batch in Passing(cut, context=CONTEXT)(asked):
        flat = batch.hidden.flatten(0, 1)
        for start, s in batch.placed:
            torch.testing.assert_close(flat[start : start + len(s.ids)], cut(torch.tensor([s.ids]))[0])
            met.append(s)
    assert met == asked


def test_what_the_store_has_is_not_computed(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, others = texts(3), texts(2, first=3)
    store = trunk.run(base, 2, stored, tmp_path, disk_gb=1, dtype="float32")
    computed: list[Tokens] = []
    real = trunk.forward
    monkeypatch.setattr(trunk, "forward", lambda cut, batch: computed.extend(batch) or real(cut, batch))
    list(Passing(Trunk(base, 2), context=CONTEXT, store=store)([*stored, *others]))
    assert sorted(s.group for s in computed) == [s.group for s in others]


def test_asked_again_it_gives_the_same_tensors_for_new_sequences(base: Base) -> None:
    reading = Passing(Trunk(base, 2), context=CONTEXT)
    first, second = list(reading(texts(4))), list(reading([Tokens(s.ids, 9, "again") for s in texts(4)]))
    assert all(a.hidden is b.hidden for a, b in zip(first, second, strict=True))
    assert {s.group for batch in second for _, s in batch.placed} == {"again"}


def test_little_is_held(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "HELD", 400)
    reading = Passing(Trunk(base, 2), context=CONTEXT)
    for first in range(0, 60, 4):
        list(reading(texts(4, first=first)))
        assert sum(batch.position_ids.numel() for batch in reading._held.values()) <= 400


def test_states_are_shared_within_an_adapter_only(base: Base) -> None:
    top = adapt(base, {}, layers=2, adapters=["one", "two"]).eval()
    for name, value in top.trainable().items():
        torch.nn.init.normal_(value, std=0.1 + 0.1 * (".two." in name))
    (batch,) = Passing(Trunk(base, 2), context=512)(texts(3))
    with torch.no_grad(), top.sharing():
        top.use("one")
        one = top.depths(batch)
        assert top.depths(batch) is one
        top.use("two")
        two = top.depths(batch)
        assert not torch.allclose(one, two)
    with torch.no_grad():
        assert top.depths(batch) is not two
        torch.testing.assert_close(top.depths(batch), two)
