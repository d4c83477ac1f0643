"""What a base is held and multiplied in on the device there is: found out, not guessed.

What learns (LoRA, heads) and the optimizer's numbers are float32 everywhere, and so is every loss.
"""

from __future__ import annotations

import time
from functools import cache
from importlib.util import find_spec

import torch
from torch.nn.functional import linear

from domainkit.model.measured import once
from domainkit.types import UserError

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "fp8": torch.float8_e4m3fn}  # fmt: skip
FITTING = {  # bits of a weight → what it can be multiplied in
    4: ("float32", "bfloat16", "float16"),
    8: ("float32", "bfloat16", "float16", "fp8"),
    16: ("bfloat16", "float16"),
    32: ("float32",),
}
NATIVE = ("avx512_bf16", "amx_bf16", "bf16")  # a CPU's instructions for bfloat16: Intel's and AMD's, Intel's, Arm's
FASTER = 1.25  # times that bfloat16 must be faster than float32: less is not worth its rounding
HOPPER = (9, 0)  # compute capability of the first GPUs that torch multiplies float8 on with a scale for each row
TOKENS, WIDTH = 512, 1024  # of the product that is timed


def precision(bits: int, wanted: str = AUTO) -> tuple[torch.dtype, torch.dtype]:
    """What is not quantized, and what matrix products are computed in.

    wanted: "auto" takes bfloat16 on a GPU that has it, float16 on another one; on a CPU float32, but for 4 bits
    bfloat16 where that is faster, and for 16 bits, which save memory. Of 4 bits on a CPU only the products are
    bfloat16: its other operations gain nothing. Raises UserError for what these bits or this device cannot do.
    """
    if wanted != AUTO:
        _check(bits, wanted)
    name = _best(bits) if wanted == AUTO else wanted
    if name == "fp8":
        return torch.bfloat16, DTYPES[name]
    products = DTYPES[name]
    return torch.float32 if bits == 4 and not torch.cuda.is_available() else products, products


@cache
def quick(device: str) -> bool:
    """Whether a device, "cpu" or "cuda", is faster at bfloat16 products than at those of float32.

    A GPU says so. A CPU says that it has instructions for them; without, torch's are up to a hundred times slower. With
    them, and where the cores share units or the memory is slow, they may win nothing: so they are timed.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in NATIVE) and once("bfloat16", device, torch.__version__, speedup) >= FASTER


@torch.no_grad()
def speedup() -> float:
    """How many times faster a CPU is in bfloat16: a linear map of 512 tokens, and its gradient, timed in turns."""
    draw = torch.Generator().manual_seed(0)
    tokens, weight = (torch.randn(rows, WIDTH, generator=draw) for rows in (TOKENS, WIDTH))
    least = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(4):
        for dtype in least:
            x, w = tokens.to(dtype), weight.to(dtype)
            began = time.perf_counter()
            linear(x, w) @ w
            least[dtype] = min(least[dtype], time.perf_counter() - began)
    return least[torch.float32] / least[torch.bfloat16]


def able() -> tuple[str, ...]:
    """What this device computes in; a GPU without emulation."""
    if not torch.cuda.is_available():
        return "float32", "bfloat16"
    short = ("bfloat16",) if quick("cuda") else ()
    return ("float32", "float16", *short, *(("fp8",) if torch.cuda.get_device_capability() >= HOPPER else ()))


def as_trained(wanted: str) -> str:
    """The precision that a run was trained in where this device has it, else "auto": an adapter fits them all."""
    return wanted if wanted in able() and (wanted != "fp8" or find_spec("torchao")) else AUTO


def _best(bits: int) -> str:
    if bits == 32:
        return "float32"
    if torch.cuda.is_available():
        return "bfloat16" if quick("cuda") else "float16"
    return "bfloat16" if bits == 16 or (bits == 4 and quick("cpu")) else "float32"


def _check(bits: int, wanted: str) -> None:
    fitting, here = FITTING[bits], able()
    if wanted not in DTYPES:
        raise UserError(f"unknown precision {wanted!r}", where="precision", instead=f"auto, {', '.join(DTYPES)}")
    if wanted not in fitting:
        which = ", ".join(str(other) for other, names in FITTING.items() if wanted in names)
        raise UserError(f"weights of {bits} bits are not multiplied in {wanted}", where="precision",
                        instead=f"auto, {' or '.join(fitting)}; or {which} bits")  # fmt: skip
    if wanted not in here:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
        needs = {"fp8": "a GPU of compute capability 9.0 (Hopper) or newer", "float16": "a GPU",
                 "bfloat16": "a GPU of compute capability 8.0 (Ampere) or newer"}  # fmt: skip
        raise UserError(f"{wanted} needs {needs[wanted]}, and {device} is none", where="precision",
                        instead=f"auto, or {' or '.join(name for name in here if name in fitting)}")  # fmt: skip
    if wanted == "fp8" and not find_spec("torchao"):
        raise UserError("fp8 needs torchao, which is not installed", where="precision",
                        instead="pip install 'domainkit[fp8]'")  # fmt: skip
