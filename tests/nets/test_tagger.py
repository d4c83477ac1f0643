"""The tagger: each text by itself, both sides read, every input heard."""

from __future__ import annotations

import pytest
import torch

from domainkit.nets.tagger import Tagger, _alike

WIDTH, DEPTHS, LABELS = 8, 3, 2

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tagger() -> Tagger:
    torch.manual_seed(0)
    return Tagger(WIDTH, DEPTHS, LABELS).eval()


def text(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, WIDTH * DEPTHS, generator=draw)
    return states, torch.randint(0, 16, (tokens,), generator=draw), torch.randint(0, 5, (tokens,), generator=draw)


def test_texts_of_any_length_each_by_itself(tagger: Tagger) -> None:
    texts = [text(5, 1), text(9, 2), text(1, 3)]
    together = tagger(*map(list, zip(*texts, strict=True)))
    assert [tuple(one.shape) for one in together] == [(5, 5), (9, 5), (1, 5)]
    for one, of in zip(together, texts, strict=True):
        torch.testing.assert_close(one, tagger(*([part] for part in of))[0])


@pytest.mark.parametrize("depth", range(DEPTHS))
def test_every_depth_is_read_from_both_sides(tagger: Tagger, depth: int) -> None:
    states, hints, ids = text(7, 1)
    changed = states.clone()
    changed[3, depth * WIDTH] += 5
    difference = (tagger([changed], [hints], [ids])[0] - tagger([states], [hints], [ids])[0]).abs().sum(-1)
    assert (difference > 0).all()


def test_hints_are_heard_bit_by_bit(tagger: Tagger) -> None:
    states, _, ids = text(4, 1)
    said = [tagger([states], [torch.full((4,), bits)], [ids])[0] for bits in (0, 1, 2, 4, 8, 3, 1 << 61)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(said) for b in said[:i])


def test_a_token_sees_the_mean_of_those_written_alike() -> None:
    own = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0], [5.0, 1.0]])
    expected = torch.tensor([[3.0, 0.5], [3.0, 2.0], [5.0, 5.0], [3.0, 0.5]])
    torch.testing.assert_close(_alike(own, torch.tensor([7, 2, 9, 7])), expected)
