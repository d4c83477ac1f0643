"""Cells: the kernels of a CPU split and choose as plain torch does, and are kept for the next process."""

from __future__ import annotations

from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from numba.core.caching import CacheImpl

from domainkit.model.attention import scored_in
from domainkit.nets import cells
from domainkit.nets.cells import best, split
from domainkit.nets.chosen import Room
from domainkit.nets.compiled import kernel

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("count", "size", "cell", "width"), [(3, 64, 4, 16), (2, 256, 2, 5), (1, 2048, 2, 64)])
def test_the_kernel_splits_as_plain_torch_does(count: int, size: int, cell: int, width: int) -> None:
    g = torch.Generator().manual_seed(size)
    segments = torch.randn(count, size, width, generator=g) + 3  # not centred
    draw = torch.Generator().manual_seed(0)
    draws = [torch.randn(width, 1, generator=draw)[:, 0] for _ in range(int(log2(size // cell)))]
    found = split(segments, cell)
    assert torch.equal(found, cells._split(segments, draws))
    assert found.flatten().sort().values.tolist() == list(range(count * size))


def test_keys_that_are_all_alike_are_halved_where_they_stand() -> None:
    assert split(torch.ones(2, 16, 8), 4).flatten().tolist() == list(range(32))


def test_cells_of_one_key_are_the_keys_as_they_stand() -> None:
    assert torch.equal(split(torch.randn(2, 64, 8), 1), torch.arange(128)[:, None])


def test_no_segments_no_cells() -> None:
    assert split(torch.empty(0, 64, 8), 4).shape == (0, 4)


WHOLE = pytest.param(torch.int8, marks=pytest.mark.skipif(scored_in("cpu") != torch.int8, reason="no VNNI"))


@pytest.mark.parametrize("dtype", [WHOLE, torch.float32])
@pytest.mark.parametrize(("take", "count", "group"), [(8, 900, 3), (3, 2000, 1), (39, 40, 2), (1, 2, 4), (0, 30, 2)])
def test_the_kernel_chooses_as_plain_torch_does(
    take: int, count: int, group: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scores below 0 too, of many that are equal, and of some that are out of reach."""
    monkeypatch.setattr(cells, "AT_ONCE", 70 * group * count // 3)  # several pieces, where there are cells enough
    g = torch.Generator().manual_seed(count)
    asked, means = (torch.randint(-127, 128, shape, generator=g) for shape in ((2, group, 70, 6), (2, count, 6)))
    offset = torch.randint(-(2**21), 2**21, (2, group, 70), generator=g).int()
    offset[:, :, 10:] //= 100
    bins = cells.BINS * max(take, 1) + cells.SHIFT
    members = torch.arange(count).expand(2, -1)[..., None]
    chosen = best(asked.to(dtype), offset, means.to(dtype), members, take, Room())
    assert chosen.shape == (2, 70, take)
    lowest, rounds = cells._plain(asked.float(), offset, means.float(), bins)
    assert torch.equal(chosen, (rounds * bins + torch.arange(bins)).gather(2, chosen % bins))  # the last of equal ones
    first = lowest.sort(dim=2, stable=True).indices[..., :take]  # of equal ones the first bins
    assert torch.equal((chosen % bins).sort(2).values, first.sort(2).values)


def test_what_is_best_by_far_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "AT_ONCE", 500)  # several pieces, the last of them shorter
    means = 100 * torch.eye(60)[None]
    asked = 20 - 100 * torch.eye(60)[None, None]
    members, offset = torch.arange(60).view(1, 60, 1), torch.zeros(1, 1, 60, dtype=torch.int32)
    assert best(asked, offset, means, members, 1, Room())[0, :, 0].tolist() == list(range(60))


def _twice(of: np.ndarray) -> None:
    for place in range(of.size):
        of[place] *= 2


def test_kernels_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path))
    kernel(set())(_twice)(np.ones(3, np.float32))
    assert list((tmp_path / "kernels").rglob("*_twice*.nbc"))


def test_where_nothing_can_be_written_kernels_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])  # as when no folder of its list can be written
    numbers = np.ones(3, np.float32)
    kernel(set())(_twice)(numbers)
    assert numbers.tolist() == [2, 2, 2]
