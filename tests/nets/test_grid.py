"""The grid: scores in whole numbers order cells as the real ones do, whatever the first keys of a text are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from domainkit.nets.grid import MOST, Grid

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(tokens: int = 40, group: int = 3, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, sums and keys of two key heads; the keys are far from 0, as those of trained models are."""
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, tokens, group, width, generator=g) * torch.rand(2, tokens, 1, 1, generator=g)
    keys = 2 * torch.randn(2, 300, width, generator=g) + 10 * torch.randn(2, 1, width, generator=g)
    return q, torch.randn(2, tokens, group, generator=g), keys


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16])
def test_product_and_offset_are_the_score(dtype: torch.dtype) -> None:
    q, lse, keys = draw()
    grid = Grid.over(keys[:, :100], dtype)
    whole, offset = grid.asked(q, lse)
    means = grid.means(keys)
    assert whole.dtype == means.dtype == dtype and offset.dtype == torch.int32
    scores = torch.einsum("hgtw,hcw->hgtc", whole.double(), means.double()) + offset[..., None]
    exact = lse.mT[..., None].double() - torch.einsum("htgw,hcw->hgtc", q.double(), keys.double())
    units = q.abs().amax((2, 3))[:, None, :, None] / MOST * grid.step[:, None]
    rest = scores * units - exact
    assert rest.std() < 0.02 * exact.std()


def test_the_kernel_gives_what_plain_torch_gives() -> None:
    q, lse, keys = draw()
    q[0, 3] = 0
    grid = Grid.over(keys, torch.int8)
    whole, offset = grid.asked(q, lse)
    plain, beside = replace(grid, dtype=torch.float32).asked(q, lse)
    assert (whole - plain).abs().max() <= 1  # a half may be rounded either way
    assert (whole != plain).float().mean() < 1e-3
    assert (offset - beside).abs().max() <= 2**-20 * beside.abs().max() + 1


def test_what_lies_further_out_than_the_grid_is_put_on_its_edge() -> None:
    _, _, keys = draw()
    grid = Grid.over(keys, torch.int8)
    assert grid.means(1000 * keys).abs().max() == MOST


def test_first_keys_that_are_all_alike_and_queries_of_nothing_are_served() -> None:
    q, lse, keys = draw()
    grid = Grid.over(torch.ones(2, 100, 16), torch.float32)
    whole, offset = grid.asked(torch.zeros_like(q), lse)
    assert not whole.any() and offset.abs().max() <= 2**22
    assert torch.isfinite(grid.means(keys)).all()
