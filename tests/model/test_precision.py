"""What a base is computed in: found out where it runs, and what cannot be is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from domainkit.model import measured, precision, trunk
from domainkit.model.base import load_base
from domainkit.model.precision import AUTO, DTYPES, FASTER, FITTING, as_trained, quick
from domainkit.types import UserError
from tests.tiny import make_base

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    quick.cache_clear()
    yield tmp_path / "cache"
    quick.cache_clear()


def on_cpu(patch: pytest.MonkeyPatch, *, fast: bool) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(precision, "quick", lambda device: fast)


def on_gpu(patch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """A GPU, as torch tells of one."""
    quick.cache_clear()
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    patch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
    patch.setattr(precision, "find_spec", lambda name: True)


@pytest.mark.parametrize(
    ("fast", "bits", "expected"),
    [
        (False, 4, (FP32, FP32)), (True, 4, (FP32, BF16)), (True, 8, (FP32, FP32)), (False, 16, (BF16, BF16)),
        (True, 32, (FP32, FP32)),
    ],
)  # fmt: skip
def test_a_cpu_takes_bfloat16_where_it_wins(
    monkeypatch: pytest.MonkeyPatch, fast: bool, bits: int, expected: tuple[torch.dtype, torch.dtype]
) -> None:
    on_cpu(monkeypatch, fast=fast)
    assert precision.precision(bits) == expected


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("capability", "short"), [((7, 5), FP16), ((8, 0), BF16), ((9, 0), BF16)])
def test_a_gpu_takes_bfloat16_where_it_has_it_else_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], short: torch.dtype
) -> None:
    on_gpu(monkeypatch, capability)
    assert [precision.precision(bits) for bits in (4, 8, 16)] == 3 * [(short, short)]
    assert precision.precision(32) == (FP32, FP32)
    assert precision.precision(4, "float32") == (FP32, FP32) and precision.precision(8, "float16") == (FP16, FP16)


@pytest.mark.usefixtures("cache")
def test_fp8_is_for_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, (9, 0))
    assert precision.precision(8, "fp8") == (BF16, FP8)
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"fp8 needs torchao.*instead: pip install 'domainkit\[fp8\]'"):
        precision.precision(8, "fp8")
    assert as_trained("fp8") == AUTO


@pytest.mark.usefixtures("cache")
def test_what_the_device_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, (7, 5))
    for bits, wanted, told in (
        (
            8,
            "fp8",
            "fp8 needs a GPU of .* 9.0 .Hopper. or newer, and Test GPU is none; instead: auto, or float32 or float16",
        ),
        (16, "bfloat16", "bfloat16 needs a GPU of .* 8.0 .Ampere. or newer.*; instead: auto, or float16"),
    ):
        with pytest.raises(UserError, match=told):
            precision.precision(bits, wanted)
    on_cpu(monkeypatch, fast=True)
    for bits, wanted, told in (
        (8, "fp8", "Hopper.* and this CPU is none; instead: auto, or float32 or bfloat16"),
        (16, "float16", "float16 needs a GPU, and this CPU is none; instead: auto, or bfloat16"),
    ):
        with pytest.raises(UserError, match=told):
            precision.precision(bits, wanted)
    assert [as_trained(wanted) for wanted in ("float16", "bfloat16", AUTO)] == [AUTO, "bfloat16", AUTO]


@pytest.mark.parametrize("bits", FITTING)
def test_what_the_bits_do_not_have_is_refused(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    on_cpu(monkeypatch, fast=True)
    monkeypatch.setattr(precision, "able", lambda: tuple(DTYPES))
    monkeypatch.setattr(precision, "find_spec", lambda name: True)
    for wanted in DTYPES:
        if wanted in FITTING[bits]:
            assert precision.precision(bits, wanted)[1] == DTYPES[wanted]
        else:
            with pytest.raises(
                UserError, match=rf"weights of {bits} bits are not multiplied in {wanted}; instead: auto"
            ):
                precision.precision(bits, wanted)
    with pytest.raises(UserError, match="unknown precision 'half'; instead: auto, float32"):
        precision.precision(bits, "half")


# Found out


def test_a_cpu_is_timed_once_and_only_if_it_says_that_it_can(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, timed = {"avx512_bf16": False, "cpu_name": "Test CPU"}, iter([FASTER + 0.1, 1.0])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    monkeypatch.setattr(precision, "speedup", lambda: next(timed))
    assert not quick("cpu") and not cache.exists()
    told["avx512_bf16"] = True
    for _ in range(2):  # two processes
        quick.cache_clear()
        assert quick("cpu")
    told["cpu_name"] = "Slower CPU"  # that shares the folder, and has the same instructions
    quick.cache_clear()
    assert not quick("cpu")
    assert len(list(cache.rglob("*test-cpu*.json"))) == len(list(cache.rglob("*slower-cpu*.json"))) == 1


def test_the_timing_tells_the_two_apart(one_thread: None) -> None:
    if not any(torch.cpu.get_capabilities().get(name) for name in precision.NATIVE):
        pytest.skip("minutes without the instructions")
    assert 0.05 < precision.speedup() < 20


def test_what_was_measured_is_kept_beside_other_things(cache: Path) -> None:
    assert measured.once("a", "cpu", "1", lambda: 1.5) == 1.5 and measured.once("b", "cpu", "1", lambda: 2.0) == 2.0
    assert measured.once("a", "cpu", "1", lambda: 9.0) == 1.5


# Followed


def test_activations_of_another_precision_are_never_taken(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for bits, wanted, fast in ((4, AUTO, False), (4, AUTO, True), (4, "float32", True), (16, AUTO, True)):
        on_cpu(monkeypatch, fast=fast)
        base = load_base(tiny_base, bits=bits, precision=wanted)
        keys.append(trunk.depends_on(base, 2, "float32"))
        assert (base.compute, base.facts["compute"]) == (DTYPES[base.facts["compute"]], base.facts["compute"])
    assert keys[0] == keys[2] and keys[0] != keys[1] and keys[1] != keys[3]
    assert keys[1] | {"rest": "torch.bfloat16"} != keys[1]  # on a GPU all of it is bfloat16


# fp8, with what torchao asks of the GPU taken out: torch multiplies float8 on a CPU too, with a scale for each row


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(precision, "able", lambda: tuple(DTYPES))


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize("stream", ["never", "always"])
def test_the_trunk_is_fp8_and_what_learns_is_not(tmp_path: Path, stream: str) -> None:
    folder = make_base(tmp_path / "base", layers=5, width=128)
    base = load_base(folder, bits=8, precision="fp8", keep=2, stream=stream)
    kinds = {
        name: type(p).__name__ for name, p in base.model.named_parameters() if "proj" in name and p.device.type == "cpu"
    }
    below = {name for name in kinds if int(name.split(".")[2]) < 3}
    if stream == "never":
        assert {kinds[name] for name in below} == {"Float8Tensor"} and len(below) == 3 * 7
    assert {kinds[name] for name in kinds.keys() - below} == {"Parameter"} and base.compute == FP8
    ids = torch.arange(3, 67)[None]
    exact = trunk.Trunk(load_base(folder, bits=16), 2)(ids).float()
    found = trunk.Trunk(base, 2)(ids).float()
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < 0.15


@pytest.mark.gpu
def test_fp8_on_a_gpu_is_near_bfloat16(real_base: Path) -> None:
    if torch.cuda.get_device_capability() < precision.HOPPER:
        pytest.skip("no Hopper")
    pytest.importorskip("torchao")
    ids = torch.arange(100, 612)[None].cuda()
    exact, found = (
        trunk.Trunk(load_base(real_base, bits=bits, precision=wanted), 2)(ids).float()
        for bits, wanted in ((16, "bfloat16"), (8, "fp8"))
    )
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.1
