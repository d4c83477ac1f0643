"""Chosen keys and what is read beside them are under one softmax; plain torch and the kernels agree.

On a processor the kernels run in Triton's interpreter, which does not know bfloat16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from domainkit.nets import chosen, chosen_numba, lsh
from domainkit.nets.chosen import Chosen
from tests.tiny import small_lsh

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def triton() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed")
    from domainkit.nets import chosen_triton

    return chosen_triton


def draw(dtype: torch.dtype = torch.float32, *, heads: int = 2, tokens: int = 5, keys: int = 60, group: int = 3,
         width: int = 8, value_width: int = 8, count: int = 40) -> dict[str, Tensor]:  # fmt: skip
    """What a token reads anyway are the first ten keys, what it chooses are others."""
    g = torch.Generator().manual_seed(heads * width + count)
    q, k = (torch.randn(*shape, width, generator=g) for shape in ((heads, tokens, group), (heads, keys)))
    v = torch.randn(heads, keys, value_width, generator=g)
    order = torch.rand(heads, tokens, keys - 10, generator=g).argsort(-1) + 10
    return {"q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype), "picked": order[..., :count]}


def beside(q: Tensor, k: Tensor, v: Tensor, picked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    scores = torch.einsum("htgd,hnd->htgn", q.float(), k[:, :10].float())
    out = torch.einsum("htgn,hnd->htgd", scores.softmax(-1), v[:, :10].float())
    return out.to(q.dtype), scores.logsumexp(-1)


def at_once(q: Tensor, k: Tensor, v: Tensor, picked: Tensor) -> Tensor:
    """The softmax over both sets, by plain indexing; differentiable."""
    anyway = torch.arange(10).expand(*picked.shape[:2], -1)
    ids = torch.cat([anyway, picked], 2)
    of = torch.arange(len(k))[:, None, None]
    shares = torch.einsum("htgd,htnd->htgn", q, k[of, ids]).softmax(-1)
    return torch.einsum("htgn,htnd->htgd", shares, v[of, ids])


def backward(reader: Chosen, grad: Tensor, q: Tensor, picked: Tensor, out: Tensor, sums: Tensor) -> list[Tensor]:
    """The gradients of q, k and v."""
    dq, *kept = reader.read_backward(grad, q, picked, out, sums)
    dk, dv = (torch.zeros(of.shape, device=of.device) for of in (reader.k, reader.v))
    reader.add(*kept, q, grad, picked, dk, dv)
    return [dq, dk, dv]


SHAPES = [{}, {"count": 1}, {"count": 33, "group": 1}, {"width": 12, "value_width": 5}, {"heads": 1, "tokens": 1},
          {"group": 17, "width": 24, "value_width": 40, "keys": 50}]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chosen_keys_and_those_beside_them_are_under_one_softmax(shape: dict[str, int]) -> None:
    given = draw(**shape)
    out, sums = Chosen(given["k"], given["v"]).read(given["q"], given["picked"], *beside(**given))
    torch.testing.assert_close(out, at_once(**given), atol=1e-5, rtol=1e-5)
    others = given | {"v": torch.ones_like(given["v"])}
    shares = Chosen(given["k"], others["v"]).read(given["q"], given["picked"], *beside(**others))[0]
    torch.testing.assert_close(shares, torch.ones_like(shares))  # of which the sums are those
    assert sums.shape == given["q"].shape[:3]


def test_keys_that_are_strided_are_copied_once() -> None:
    """As those of Transformers are; a copy at every block would take longer than all the reading."""
    given = draw(keys=3000)
    k, v = (torch.stack([of, of], 2)[:, :, 0] for of in (given["k"], given["v"]))
    reader, near, largest = Chosen(k, v), beside(**given), []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.clone.default, torch.ops.aten._unsafe_view.default):
                largest.append(made.numel())
            return made

    with Largest():
        out, sums = reader.read(given["q"], given["picked"], *near)
        backward(reader, out, given["q"], given["picked"], out, sums)
    torch.testing.assert_close(out, at_once(**given), atol=1e-5, rtol=1e-5)
    assert max(largest, default=0) < k.numel()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_through_the_chosen_keys(shape: dict[str, int]) -> None:
    given = draw(**shape)
    learned = {name: given[name].requires_grad_() for name in "qkv"}
    out = at_once(**given)
    grad = torch.linspace(-1, 1, out.numel()).view_as(out)
    wanted = torch.autograd.grad(out, list(learned.values()), grad)
    with torch.no_grad():
        reader = Chosen(given["k"], given["v"])
        _, sums = reader.read(given["q"], given["picked"], *beside(**given))
        dq, dk, dv = backward(reader, grad, given["q"], given["picked"], out, sums)
        first = (grad * out).sum(-1, keepdim=True)  # what goes through the ten others, by hand
        ten_k, ten_v = given["k"][:, :10], given["v"][:, :10]
        shares = (torch.einsum("htgd,hnd->htgn", given["q"], ten_k) - sums[..., None]).exp()
        moves = (torch.einsum("htgd,hnd->htgn", grad, ten_v) - first) * shares
        dq += torch.einsum("htgn,hnd->htgd", moves, ten_k)
        dk[:, :10] += torch.einsum("htgn,htgd->hnd", moves, given["q"])
        dv[:, :10] += torch.einsum("htgn,htgd->hnd", shares, grad)
    for found, right in zip((dq, dk, dv), wanted, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-4)


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DTYPES = torch.float32, torch.float16, torch.bfloat16
WHERE = [*(("cpu", dtype) for dtype in DTYPES[:2]), *(pytest.param("cuda", dtype, marks=ON_GPU) for dtype in DTYPES)]


@pytest.mark.parametrize(("device", "dtype"), WHERE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_of_a_gpu_give_what_plain_torch_gives(
    shape: dict[str, int], device: str, dtype: torch.dtype, triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(draw(dtype, **shape), triton, device, monkeypatch)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_of_a_cpu_give_what_plain_torch_gives(
    shape: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(draw(**shape), chosen_numba, "cpu", monkeypatch)


def agree(given: dict[str, Tensor], kernels: ModuleType, device: str, patch: pytest.MonkeyPatch) -> None:
    near, sides = beside(**given), []
    grad = torch.linspace(-1, 1, near[0].numel()).view_as(near[0]).to(near[0].dtype)
    for by, on in ((None, "cpu"), (kernels, device)):
        patch.setattr(chosen, "_kernels", lambda _, by=by: by)
        q, k, v, picked, *others = (of.to(on) for of in (*given.values(), *near))
        reader = Chosen(k, v)
        found = reader.read(q, picked, *others)
        known = sides[0][:2] if sides else found
        sides.append([*found, *backward(reader, grad.to(on), q, picked, *(of.to(on) for of in known))])
    close = 1e-4 if grad.dtype == torch.float32 else 0.03
    for one, other in zip(*sides, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(other.cpu(), one, atol=close, rtol=close)


@pytest.mark.parametrize("by", ["triton", "numba"])
def test_lsh_attention_through_the_kernels(
    by: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it, with gradients: what is chosen is the same, since only the reading differs."""
    small_lsh(monkeypatch)
    kernels = request.getfixturevalue("triton") if by == "triton" else chosen_numba
    g = torch.Generator().manual_seed(0)
    results = []
    for using in (None, kernels):
        monkeypatch.setattr(chosen, "_kernels", lambda _, using=using: using)
        g.manual_seed(0)
        given = [torch.randn(1, heads, 120, 16, generator=g).requires_grad_() for heads in (4, 2, 2)]
        out = lsh.attend(*given, 0.25, keys=12)
        out.square().sum().backward()
        results.append([out.detach(), *(of.grad for of in given)])
    for right, other in zip(*results, strict=True):
        torch.testing.assert_close(other, right, atol=1e-5, rtol=1e-4)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from domainkit.nets import chosen_triton

sizes = {"group": 3, "width": 64, "value_width": 64, "rows": 16, "columns": 64, "value_columns": 64}
kinds = dict.fromkeys(sizes, "constexpr") | dict.fromkeys(("tokens", "keys", "count"), "i32")
kinds |= {"picked": "*i64"} | dict.fromkeys(("sums", "total", "dk", "dv"), "*fp32")
for kernel in (chosen_triton._read, chosen_triton._read_backward, chosen_triton._add):
    for capability in (80, 90):  # A100, H100
        for dtype in ("*fp32", "*fp16", "*bf16"):
            types = {name: kinds.get(name, dtype) for name in kernel.arg_names}
            values = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
            made = compile(ASTSource(kernel, types, values), target=GPUTarget("cuda", capability, 32))
            print(capability, dtype, len(made.asm["cubin"]))
"""


def test_the_kernels_compile_where_there_is_no_gpu(tmp_path: Path) -> None:
    """To machine code, in a process without the interpreter, which takes what the compiler may not."""
    pytest.importorskip("triton", reason="Triton is not installed")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env | {"TRITON_CACHE_DIR": str(tmp_path)},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 18
