"""head_cross_entropy against PyTorch's own cross-entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from domainkit.nets import loss as module
from domainkit.nets.loss import head_cross_entropy, token_logprobs


@settings(max_examples=25)
@given(tokens=st.integers(1, 70), width=st.integers(1, 24), vocabulary=st.integers(2, 90), seed=st.integers(0, 2**16))
def test_loss_and_gradient_are_those_of_pytorch(tokens: int, width: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * 3
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    target = torch.randint(vocabulary, (tokens,), generator=generator)
    plain, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    expected = F.cross_entropy(F.linear(plain, weight), target, reduction="sum")
    (expected / 7).backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 16)  # several blocks and a remainder
        found = head_cross_entropy(ours, weight, target)
        (found / 7).backward()
        logprobs = token_logprobs(hidden, weight, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, plain.grad)
    torch.testing.assert_close(-logprobs.sum(), expected)


def test_without_gradient_the_loss_is_the_same() -> None:
    hidden, weight, target = torch.randn(9, 4), torch.randn(11, 4), torch.arange(9)
    with torch.no_grad():
        found = head_cross_entropy(hidden, weight, target)
    torch.testing.assert_close(found, F.cross_entropy(hidden @ weight.T, target, reduction="sum"))


def test_large_logits_stay_finite() -> None:
    hidden = torch.full((3, 2), 300.0, requires_grad=True)
    weight = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    loss = head_cross_entropy(hidden, weight, torch.tensor([1, 1, 0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(hidden.grad).all()


def test_a_trainable_head_is_refused() -> None:
    weight = torch.randn(5, 4, requires_grad=True)
    with pytest.raises(ValueError, match="frozen head"):
        head_cross_entropy(torch.randn(3, 4), weight, torch.arange(3))
