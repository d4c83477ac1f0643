"""The bytes of a computation's tensors are counted as they come and go, with memory for them or without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from domainkit.nets.meter import LARGE, Meter

SIZE = 1000 * 4  # bytes of 1000 float32


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_goes_is_counted_no_more(device: str) -> None:
    with Meter() as meter:
        kept = torch.empty(1000, device=device)
        made = kept + 1
        assert (meter.now, meter.peak) == (2 * SIZE, 2 * SIZE)
        del made
        assert (meter.now, meter.peak) == (SIZE, 2 * SIZE)
        del kept
    assert (meter.now, meter.peak) == (0, 2 * SIZE)


def test_views_and_what_was_there_before_take_nothing() -> None:
    before = torch.zeros(10, 100, device="meta")
    with Meter() as meter:
        views = before.T, before.flatten(), before[3:], before.add_(1)
        assert (meter.now, meter.peak) == (0, 0)
        copy = before.T.contiguous()
        views = copy.view(-1), copy[0]
        del copy
        assert meter.now == SIZE  # the views hold it
        del views
    assert meter.now == 0


def test_backward_holds_what_forward_saved() -> None:
    layers = nn.Sequential(*(nn.Linear(100, 100, device="meta") for _ in range(8))).requires_grad_(False)
    peaks = []
    for learn in (False, True):
        given = torch.zeros(10, 100, device="meta", requires_grad=learn)
        with Meter() as meter:
            states = given
            for layer in layers:
                states = layer(states).tanh()
            if learn:
                states.sum().backward()
        peaks.append(meter.peak)
    assert peaks[0] == 3 * SIZE  # input of a layer, its product, and that product's tanh
    assert 9 * SIZE <= peaks[1] <= 12 * SIZE  # each tanh keeps its output; on the way back a few more


def test_large_tensors_are_told_from_those_whose_memory_stays() -> None:
    with Meter() as meter:
        large = torch.empty(LARGE, dtype=torch.uint8, device="meta")
        small = torch.empty(LARGE - 1, dtype=torch.uint8, device="meta")
        del large, small
    assert (meter.now, meter.small, meter.peak, meter.kept) == (0, 0, 2 * LARGE - 1, LARGE - 1)
