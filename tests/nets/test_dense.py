"""Dense attention that tells its sums: the CPU's kernel and the plain products of other devices are one mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from domainkit.nets import dense as module
from domainkit.nets.dense import dense, dense_backward


def draw(value_width: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return (torch.randn(2, 5, 3, 8, generator=g), torch.randn(2, 9, 8, generator=g),
            torch.randn(2, 9, value_width, generator=g))  # fmt: skip


def expected(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """By autograd's own operations, one token after the other."""
    outs, sums = [], []
    for token in range(5):
        scores = torch.einsum("hgd,hkd->hgk", q[:, token], k[:, : 5 + token])
        some = first.shape[1]
        scores = torch.cat([scores[..., :some] + first[:, None], scores[..., some:]], -1)
        outs.append(torch.einsum("hgk,hkd->hgd", scores.softmax(-1), v[:, : 5 + token]))
        sums.append(scores.logsumexp(-1))
    return torch.stack(outs, 1), torch.stack(sums, 1)


@pytest.mark.parametrize("first", [[[], []], [[2.0, -math.inf, 0.5], [-1.0, 3.0, -math.inf]]])
@pytest.mark.parametrize("value_width", [4, 8, 12])
def test_the_kernel_and_the_plain_products_give_the_output_the_sums_and_the_gradients(
    value_width: int, first: list[list[float]]
) -> None:
    q, k, v = (of.requires_grad_() for of in draw(value_width))
    added = torch.tensor(first)
    out, sums = expected(q, k, v, added)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(out, (q, k, v), grad)
    with torch.no_grad():
        for forward, backward in ((dense, dense_backward), (module._dense, module._dense_backward)):
            for found, right in zip(forward(q, k, v, added), (out, sums), strict=True):
                torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
            for found, right in zip(backward(grad, q, k, v, added, out, sums), wanted, strict=True):
                torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
