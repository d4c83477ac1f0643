"""Four bits a weight: what comes back, what is kept to the bit, and gradients through it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from domainkit.nets.affine import pack, product, row_bytes, unpack


def normal(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("width", "block"), [(64, 32), (576, 32), (256, 64)])
def test_four_bits_and_little_more_give_the_weights_back(width: int, block: int) -> None:
    weight = normal(50, width)
    packed = pack(weight, block)
    assert packed.shape == (50, row_bytes(width, block)) and packed.dtype == torch.uint8
    assert packed.numel() * 8 / weight.numel() == 4 + 16 / block + 16 / width
    lost = (unpack(packed, width, block) - weight).square().mean()
    assert lost < (0.0065 if block == 32 else 0.008)  # NF4 in blocks of 64 loses 0.0085
    assert torch.equal(unpack(packed[7:9], width, block), unpack(packed, width, block)[7:9])  # row by row


def test_errors_are_made_up_for_where_the_states_are_known() -> None:
    """States along few directions, as those of a decoder's last layer: what the products lose gets far less."""
    weight, mix = normal(200, 128), normal(128, 128) * torch.logspace(0, -2, 128)
    states = normal(1000, 128) @ mix.T
    moment = states.T @ states / len(states)

    def lost(packed: torch.Tensor) -> tuple[float, float]:
        error = unpack(packed, 128, 32) - weight
        return float(error.square().mean()), float((states @ error.T).square().mean())

    (plain, plainly), (made_up, products) = lost(pack(weight, 32)), lost(pack(weight, 32, moment))
    assert products < plainly / 3 and plain < made_up < 2.5 * plain
    parts = [pack(part, 32, moment) for part in weight.split(50)]
    assert torch.equal(torch.cat(parts), pack(weight, 32, moment))  # row by row


def test_weights_on_such_a_grid_keep_their_numbers() -> None:
    """As those of a Q4_1 file: each block of 32 a scale and a least value of its own, 16 bits each."""
    draw = torch.Generator().manual_seed(1)
    scale = (0.02 + 0.02 * torch.rand(40, 18, 1, generator=draw)).half().float()
    least = (-7.5 * scale + 0.02 * torch.randn(40, 18, 1, generator=draw)).half().float()
    numbers = torch.randint(0, 16, (40, 18, 32), generator=draw)
    numbers[..., 0], numbers[..., 1] = 0, 15  # whoever made the file used the whole range
    weight = (numbers * scale + least).flatten(1)
    packed = pack(weight, 32)
    halves = packed[:, : 576 // 2]
    assert torch.equal(torch.cat([halves & 15, halves >> 4], 1), numbers.flatten(1).to(torch.uint8))
    assert ((unpack(packed, 576, 32) - weight).view(40, 18, 32).abs() / scale).max() < 0.15  # of a step


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e6])
def test_every_magnitude(scale: float) -> None:
    weight = normal(5, 128) * scale
    found = unpack(pack(weight, 32), 128, 32)
    assert torch.isfinite(found).all() and torch.allclose(found, weight, atol=0.5 * scale + 1e-30)


def test_a_block_of_one_sign_and_a_lonely_large_weight() -> None:
    weight = torch.full((1, 64), 0.5)
    weight[0, 40] = 100.0
    found = unpack(pack(weight, 32), 64, 32)
    assert torch.allclose(found[0, :32], weight[0, :32], atol=0.3) and abs(float(found[0, 40]) - 100) < 4


def test_product_and_its_gradient_are_those_of_the_unpacked_matrix() -> None:
    packed, states = pack(normal(30, 64), 32), normal(7, 64).unsqueeze(0)
    mine, theirs = (states.clone().requires_grad_() for _ in range(2))
    out, wanted = product(mine, packed, 32), linear(theirs, unpack(packed, 64, 32))
    assert torch.equal(out, wanted)
    out.square().sum().backward()
    wanted.square().sum().backward()
    assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_floating_type_is_packed(dtype: torch.dtype) -> None:
    weight = normal(4, 64).to(dtype)
    assert torch.equal(pack(weight, 32), pack(weight.float(), 32))
