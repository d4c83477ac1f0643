"""LSH attention: dense where it reads all, causal to the bit, near-linear in memory, and it finds what is far back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from domainkit.model.attention import scored_in
from domainkit.nets import lsh
from domainkit.nets.lsh import attend
from tests.tiny import small_lsh

SCALE = 0.3

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(tokens: int, *, queries: int = 0, rows: int = 1, group: int = 3, key_heads: int = 2, width: int = 16,
         value_width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, group * key_heads, queries or tokens, width, generator=g)
    k = torch.randn(rows, key_heads, tokens, width, generator=g)
    return q, k, torch.randn(rows, key_heads, tokens, value_width, generator=g)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention of PyTorch, of the last queries."""
    group, tokens, queries = q.shape[1] // k.shape[1], k.shape[2], q.shape[2]
    seen = torch.arange(tokens) <= torch.arange(tokens - queries, tokens)[:, None]
    k, v = (of.repeat_interleave(group, 1) for of in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=SCALE)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_lsh(monkeypatch, TOGETHER=1)


@given(tokens=st.integers(1, 200), asked=st.integers(1, 200), group=st.integers(1, 3), key_heads=st.integers(1, 2),
       width=st.integers(1, 9), value_width=st.integers(1, 9), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_reading_all_keys_is_dense_attention(
    tokens: int, asked: int, group: int, key_heads: int, width: int, value_width: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_lsh(patch, TOGETHER=1)
        q, k, v = draw(tokens, queries=min(asked, tokens), group=group, key_heads=key_heads, width=width,
                       value_width=value_width, seed=seed)  # fmt: skip
        torch.testing.assert_close(attend(q, k, v, SCALE, keys=tokens), dense(q, k, v), atol=1e-5, rtol=1e-5)


def test_reading_all_keys_has_the_gradients_of_dense_attention() -> None:
    sides = [of.requires_grad_() for of in draw(2700)]
    grad = torch.randn(dense(*sides).shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(dense(*sides), sides, grad)
    found = torch.autograd.grad(attend(*sides, SCALE, keys=2700), sides, grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("small")
def test_gradients_with_a_choice_are_those_of_differences() -> None:
    sides = [of.double().requires_grad_() for of in draw(150, group=2, key_heads=1, width=3, value_width=2)]

    def far(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, SCALE, keys=8)[:, :, 100:]

    assert torch.autograd.gradcheck(far, sides, eps=1e-5, atol=1e-3, rtol=1e-2, fast_mode=True)


@pytest.mark.parametrize("change", [40, 700, 2575, 2576, 2699])
def test_a_later_token_changes_no_bit_of_an_earlier_output(change: int) -> None:
    q, k, v = draw(2700)
    before = attend(q, k, v, SCALE, keys=32)
    for of, by in ((q, 1.0), (k, 3.0), (v, -2.0)):
        of[:, :, change:] += by
    after = attend(q, k, v, SCALE, keys=32)
    assert torch.equal(after[:, :, :change], before[:, :, :change])
    assert not torch.allclose(after[:, :, change], before[:, :, change])


@pytest.mark.parametrize("queries", [1, 5, 300, 1000])
def test_in_parts_as_in_one_go(queries: int) -> None:
    q, k, v = draw(2700)
    whole = attend(q, k, v, SCALE, keys=32)
    torch.testing.assert_close(attend(q[:, :, -queries:], k, v, SCALE, keys=32), whole[:, :, -queries:])


@pytest.mark.usefixtures("small")
def test_an_index_is_extended_not_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(400, rows=2)
    whole = attend(q, k, v, SCALE, keys=16)
    split, seen = lsh.split, list[int]()
    monkeypatch.setattr(lsh, "split", lambda of, cell: (seen.append(of.shape[0] * of.shape[1]), split(of, cell))[1])
    index, found, start = lsh.Index(), [], 0
    for end in (130, 131, 132, 200, 390, 391, 400):
        found.append(attend(q[:, :, start:end], k[:, :, :end], v[:, :, :end], SCALE, keys=16, index=index))
        start = end
    torch.testing.assert_close(torch.cat(found, 2), whole)
    assert sum(seen) == 2 * 2 * (
        398 // 8 * 8 + 398 // 16 * 16 + 398 // 64 * 64
    )  # rows, key heads: each key once for each size


@pytest.mark.usefixtures("small")
def test_an_index_of_another_text_is_not_used() -> None:
    index, texts = lsh.Index(), [draw(300, seed=seed) for seed in (1, 2)]
    for q, k, v in texts:
        for end in (200, 300):  # the second text has as many tokens as the first
            found = attend(q[:, :, end - 100 : end], k[:, :, :end], v[:, :, :end], SCALE, keys=16, index=index)
            expected = attend(q[:, :, end - 100 : end], k[:, :, :end], v[:, :, :end], SCALE, keys=16)
            torch.testing.assert_close(found, expected)


def test_same_input_same_bits() -> None:
    q, k, v = draw(1500)
    assert torch.equal(attend(q, k, v, SCALE), attend(q, k, v, SCALE))


def test_packed_documents_as_each_alone_and_padding_is_nothing() -> None:
    lengths = (700, 1, 1200)
    alone = [draw(n, seed=n) for n in lengths]
    q, k, v = (torch.cat(of, 2) for of in zip(*alone, strict=True))
    q, k, v = (torch.cat([torch.full_like(of[:, :, :9], 99.0), of], 2) for of in (q, k, v))  # padding on the left
    number = torch.repeat_interleave(torch.tensor([-1, 0, 1, 2]), torch.tensor([9, *lengths]))[None]
    sides = [of.requires_grad_() for of in (q, k, v)]
    found = attend(*sides, SCALE, keys=32, documents=number)
    expected = torch.cat([attend(*of, SCALE, keys=32) for of in alone], 2)
    torch.testing.assert_close(found[:, :, 9:], expected)
    assert not found[:, :, :9].any()
    for grad in torch.autograd.grad(found.sum(), sides):
        assert not grad[:, :, :9].any()
        assert grad[:, :, 9:].any()
    last = attend(q[:, :, -1300:], k, v, SCALE, keys=32, documents=number)  # begins within a document
    torch.testing.assert_close(last, found[:, :, -1300:])


def test_what_is_far_back_is_found() -> None:
    """Tokens that ask for one key each, of thousands that are alike in pairs only by accident."""
    tokens, width = 9000, 32
    g = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 1, tokens, width, generator=g), dim=-1)
    v = torch.randn(1, 1, tokens, width, generator=g)
    sought = torch.randint(lsh.SINKS, 8000, (512,), generator=g)
    q = 40 * k[:, :, sought]
    got = attend(q, k, v, 1.0, keys=64)
    right = (got - v[:, :, sought]).norm(dim=-1) < 0.5 * v[:, :, sought].norm(dim=-1)
    assert right.float().mean() > 0.9
    blind = attend(q, k, v, 1.0, keys=0)
    assert ((blind - v[:, :, sought]).norm(dim=-1) < 0.5 * v[:, :, sought].norm(dim=-1)).float().mean() < 0.1


def test_what_is_not_chosen_counts_in_the_mean() -> None:
    """Keys that are all alike have all the same weight; a choice of them alone would be little of the whole."""
    q, k, v = draw(9000)
    k[:] = k[:, :, :1]
    v[:, :, lsh.SINKS : 6000] += 3.0
    found, expected = attend(q, k, v, SCALE, keys=32), dense(q, k, v)
    torch.testing.assert_close(found[:, :, -1000:], expected[:, :, -1000:], atol=0.05, rtol=0.05)


def test_a_mean_counts_for_less_where_keys_tell_values() -> None:
    g = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 64, (3000,), generator=g)  # as of tokens
    keys = torch.randn(64, 16, generator=g)[kinds][None] + 0.1 * torch.randn(1, 3000, 16, generator=g)
    told, other = torch.randn(64, 8, generator=g)[kinds][None], torch.randn(1, 3000, 8, generator=g)
    share = [float(lsh.hashed(keys, values, torch.float32).untold.exp()) for values in (told, other)]
    assert share[0] < 0.5 and share[1] > 0.9
    flat = lsh.hashed(keys, torch.ones(1, 3000, 8), torch.float32).untold
    assert not flat.any()  # nothing to tell
    assert not lsh.hashed(keys[:, :2000], told[:, :2000], torch.float32).untold.any()  # no pairs yet


def test_each_key_far_back_stands_in_one_cell() -> None:
    position = lsh.SINKS + 16384 + 3 * 2048 + 5 * 256
    levels = lsh.hashed(*torch.randn(2, 2, position + 100, 4), torch.float32).levels
    found = torch.cat([levels[level].members[:, cells].flatten(1) for level, cells in lsh._before(position)], 1)
    for head in found:
        assert head.sort().values.tolist() == list(range(lsh.SINKS, position))


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for of in out if isinstance(out, tuple | list) else (out,):
            if isinstance(of, Tensor):
                self.elements = max(self.elements, of.untyped_storage().nbytes() // of.element_size())
        return out


def test_no_tensor_grows_with_the_square() -> None:
    largest = []
    for tokens in (16384, 32768):
        sides = [of.requires_grad_() for of in draw(tokens, group=1, key_heads=1, width=8)]
        with _Largest() as mode:
            attend(*sides, SCALE, keys=16).sum().backward()
        largest.append(mode.elements)
    assert largest[1] < 2.5 * largest[0]
    assert largest[1] < 32768**2 / 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_precisions(dtype: torch.dtype) -> None:
    q, k, v = draw(900)
    short = [of.to(dtype).requires_grad_() for of in (q, k, v)]
    found = attend(*short, SCALE, keys=900)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), dense(q, k, v), atol=0.05, rtol=0.05)
    for grad, of in zip(torch.autograd.grad(found.sum(), short), short, strict=True):
        assert grad.dtype == of.dtype and torch.isfinite(grad).all()


@pytest.mark.skipif(scored_in("cpu") != torch.int8, reason="no VNNI")
def test_whole_numbers_multiplied_as_such_or_in_float32_choose_the_same() -> None:
    q, k, v = draw(5000, width=32)
    found = [attend(q, k, v, SCALE, keys=64, scored_in=of) for of in (torch.int8, torch.float32)]
    assert (found[0] != found[1]).any(-1).float().mean() < 1e-3  # the last bit of an offset may round otherwise


def test_no_text_and_padding_alone() -> None:
    q, k, v = draw(5)
    assert attend(q[:, :, :0], k[:, :, :0], v[:, :, :0], SCALE).shape == (1, 6, 0, 8)
    assert not attend(q, k, v, SCALE, documents=torch.full((1, 5), -1)).any()
    torch.testing.assert_close(attend(*draw(1), SCALE), draw(1)[2].repeat_interleave(3, 1))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("width", "do not fit"),
        ("heads", "do not fit"),
        ("queries", "do not fit"),
        ("dtype", "one floating-point type"),
        ("integer", "one floating-point type"),
        ("key", "key of token 3, head 1, row 0 is not finite"),
        ("value", "value of token 3, head 1, row 0 is not finite"),
    ],
)
def test_bad_input(fault: str, message: str) -> None:
    q, k, v = draw(5)
    if fault == "width":
        q = q[..., :7]
    elif fault == "heads":
        q = q[:, :5]
    elif fault == "queries":
        k, v = k[:, :, :4], v[:, :, :4]
    elif fault == "dtype":
        q = q.double()
    elif fault == "integer":
        q, k, v = q.long(), k.long(), v.long()
    else:
        {"key": k, "value": v}[fault][0, 1, 3, 2] = math.nan if fault == "key" else math.inf
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, SCALE)


def test_a_dtype_that_a_processor_does_not_score_in_is_told() -> None:
    with pytest.raises(ValueError, match=r"does not score cells in torch.bfloat16: one of torch.int8, torch.float32"):
        attend(*draw(5), SCALE, scored_in=torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_processor_gives() -> None:
    """Where all keys are read: else rounding may choose another cell."""
    found = []
    for device in ("cpu", "cuda"):
        given = [of.to(device).requires_grad_() for of in draw(3000)]
        out = attend(*given, SCALE, keys=3000)
        out.square().sum().backward()
        found.append([out.detach().cpu(), *(of.grad.cpu() for of in given if of.grad is not None)])
    for right, other in zip(*found, strict=True):
        torch.testing.assert_close(other, right, atol=1e-3, rtol=1e-3)
