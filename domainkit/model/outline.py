"""A base without its weights: everything that its config.json tells, on the meta device.

Shapes and numbers of parameters are those of the loaded base, so whatever only moves shapes works on it: trunk, top,
heads. Its attention and its routed experts stand in for the real ones, which look at values: they make tensors of the
sizes that those make.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.moe import ExpertsInterface

from domainkit.model.attention import NAME as LSH
from domainkit.model.base import Base, check_packed, configuration
from domainkit.model.bases import KNOWN, resolve
from domainkit.model.crossover import AT
from domainkit.model.folder import CONFIG, has_tokenizer, inspect_config, quiet, read_tokenizer
from domainkit.model.packed import block_of, compute_in, is_packed, values
from domainkit.model.packed import replace as pack
from domainkit.model.precision import AUTO
from domainkit.model.precision import precision as chosen
from domainkit.types import UserError

BLOCK, NEST = 64, 256  # of bitsandbytes: weights that share a scale in NF4, and scales that share one themselves
TABLES = 4 * (1 + 16 + 256)  # bytes beside: the mean of the scales, what four bits mean, what a scale's eight mean
SHARED = 8  # LSH attention works with so many numbers for each one of a query


def outline(name: str, *, bits: int, attention: str, context: int, precision: str = AUTO, hub: bool = False,
            spell: bool = False) -> Base:  # fmt: skip
    """The base that `load_base` would load, on the meta device and with no fingerprint.

    name: as there, or a config.json; a folder needs to hold nothing else. spell: where there is no tokenizer, take one
    that spells texts byte by byte. Raises UserError: no such config; one that is not of a decoder or cannot be built;
    no tokenizer; positions that cannot be stretched.
    """
    file = _config_of(name, hub)
    inspect_config(file)
    if not (spell or has_tokenizer(file.parent)):
        raise UserError("there is no tokenizer to count the data with", where=file.parent,
                        instead="tokenizer.json beside config.json, or domainkit plan with --tokens N")  # fmt: skip
    tokenizer = read_tokenizer(file.parent) if has_tokenizer(file.parent) else _bytes()
    dtype, compute = chosen(bits, precision)
    try:
        config, stretched = configuration(file, context)
        block = block_of(config)
        if block:
            check_packed(file.parent, bits)
        model = _built(config, dtype, attention, block)
    except UserError:
        raise
    except Exception as error:  # a config may be wrong in any way, and its classes check few of its values
        raise UserError(f"no model can be built from it: {' '.join(str(error).split())}", where=file,
                        instead="the config.json of a Llama-, Qwen- or DeepSeek-like decoder") from error  # fmt: skip
    compute_in(model, compute)
    base = Base(model, tokenizer, name, file.parent, "", bits, attention, compute, positions=stretched,
                packed=block if block and bits == 4 else 0)  # fmt: skip
    base.layers()
    return base


def outline_of(base: Base) -> Base:
    """The outline of a base that is loaded, with the tokens that a glossary has added to it."""
    config = copy.deepcopy(base.model.config)
    vars(config).pop("quantization_config", None)
    model = _built(config, base.model.dtype, base.attention, base.packed)
    compute_in(model, base.compute)
    return replace(base, model=model)


def _built(config: Any, dtype: torch.dtype, attention: str, block: int | None) -> Any:
    """block: weights of a block, if weights are packed."""
    with torch.device("meta"), quiet():
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=f"{NAME}-{attention}", trust_remote_code=False
        )
        if block:
            pack(model, block)
        model.tie_weights()
    _route(model)
    return model.eval().requires_grad_(False)


def size(base: Base, bits: int, modules: Iterable[nn.Module] | None = None) -> int:
    """Bytes of the weights, of all or of some modules, in so many bits: what `load_base` says stays as it is does.

    Packed weights are as large as they are packed, but in 16 and 32 bits.
    """
    dtype, own = chosen(bits)[0], list([base.model] if modules is None else modules)
    quantized = {id(m.weight) for m in linear_maps(base, own)} if bits < 16 else set()
    packed = {id(m.weight): m for module in own for m in module.modules() if is_packed(m)}

    def one(key: int, parameter: nn.Parameter) -> int:
        if key in packed:
            return parameter.nbytes if bits < 16 else values(packed[key]).numel() * dtype.itemsize
        return _quantized(parameter.shape, bits) if key in quantized else parameter.numel() * dtype.itemsize

    found = {id(p): p for module in own for p in module.parameters()}
    return sum(one(key, parameter) for key, parameter in found.items())


def linear_maps(base: Base, modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """The linear maps that are quantized when the base is loaded in 4 or 8 bits, or were once."""
    return [m for module in modules for m in module.modules() if isinstance(m, nn.Linear) and m is not base.head]


def on_disk(base: Base) -> tuple[int, torch.dtype]:
    """Bytes of the weights as they were saved, and their dtype: as config.json says, which may say nothing (16 bits,
    as most are)."""
    file = base.path / CONFIG
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    saved = getattr(torch, str(facts.get("dtype") or facts.get("torch_dtype")), torch.bfloat16)
    found = sum(file.stat().st_size for file in base.path.glob("*.safetensors"))
    return found or sum(p.numel() for p in base.model.parameters()) * saved.itemsize, saved


def _quantized(shape: torch.Size, bits: int) -> int:
    """Bytes of a quantized matrix: LLM.int8 with a scale for each row, or NF4 with double quantization."""
    if bits == 8:
        return shape.numel() + 4 * shape[0]
    scales = ceil(shape.numel() / BLOCK)
    return ceil(shape.numel() / 2) + scales + 4 * ceil(scales / NEST) + TABLES


def _config_of(name: str, hub: bool) -> Path:
    file = Path(name).expanduser()
    if name not in KNOWN and file.is_file():
        return file
    try:
        return resolve(name, hub=hub) / CONFIG
    except UserError as error:
        if hub or name in KNOWN:
            raise
        known = f"one of {', '.join(KNOWN)}, a folder with {CONFIG}, or such a file"
        raise UserError("no such config", where=name, instead=known) from error


def _bytes() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: what texts say of labels is told with it, not how many tokens they have."""
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


class _Flash(torch.autograd.Function):
    """Attention that never holds all scores: it keeps its inputs, its output and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:3], v.shape[3])
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(torch.empty_like(saved) for saved in ctx.saved_tensors[:3]), None)


def _attention(way: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
               dropout: float = 0.0, scaling: float | None = None, **rest: Any) -> tuple[Tensor, None]:  # fmt: skip
    """As every function of Transformers' AttentionInterface. Mask: (rows, 1, queries, keys) bool, or None."""
    long = way == LSH and mask is None and query.shape[2] >= AT
    scores_too = way == "eager" or query.shape[3] != value.shape[3]  # torch's kernel for CPUs knows one width only
    group = query.shape[1] // key.shape[1]
    if group > 1 and (scores_too or mask is not None):
        key, value = (of[:, :, None].expand(-1, -1, group, -1, -1).reshape(*query.shape[:2], *of.shape[2:])
                      for of in (key, value))  # fmt: skip
    mask = None if mask is None else mask.to(query.dtype)
    if scores_too and not long:
        scores = query @ key.mT * (scaling or 1.0)
        scores = scores if mask is None else scores + mask
        found = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
    else:
        work = query.new_empty(SHARED, query.numel()) if long else None
        found = _Flash.apply(query, key, value, mask)
        del work
    return found.transpose(1, 2).contiguous(), None


def _experts(module: Any, states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Every token through as many experts as it is routed to; all of them here are the first one."""
    chosen = index.shape[-1]
    rows = states.repeat_interleave(chosen, 0)  # (tokens * chosen, width)
    inside = rows @ module.gate_up_proj[0].T
    gate, up = inside.chunk(2, -1)
    out = (module.act_fn(gate) * up) @ module.down_proj[0].T
    return (out * weights.reshape(-1, 1)).view(len(states), chosen, -1).sum(1).to(states.dtype)


def _route(model: Any) -> None:
    """Let routed experts, if there are any, be `_experts`."""
    if any(p.ndim == 3 for p in model.parameters()):
        model.set_experts_implementation(NAME)


NAME = "outline"  # of what stands in, beside the names of the real ones
for _way in ("sdpa", "eager", LSH):
    AttentionInterface.register(f"{NAME}-{_way}", partial(_attention, _way))
ExpertsInterface.register(NAME, _experts)
