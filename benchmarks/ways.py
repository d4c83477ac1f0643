"""The ways of attending that the LSH benchmarks compare, by themselves and in every layer of a base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from domainkit.model import positions
from domainkit.model.attention import scored_in
from domainkit.model.base import Base
from domainkit.nets import lsh

ROUNDS, PATIENCE = 3, 60.0  # how often a time is taken; seconds of a first round after which there is no other


@dataclass(frozen=True)
class Way:
    """(q, k, v, scale) → causal attention, all shaped as in `lsh.attend`."""

    name: str  # "dense", "lsh", or "window": sinks and a window that together hold as many keys as lsh reads
    keys: int | None = None  # that lsh reads beside sinks and blocks; of dense: None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self.keys is None:
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        if self.name == "lsh":
            return lsh.attend(q, k, v, scale, keys=self.keys, scored_in=scored_in("cpu"))
        return window(q, k, v, scale, size(self.keys))


def ways(keys: Iterable[int]) -> list[Way]:
    """Dense attention, and for each number of keys a window and LSH."""
    return [Way("dense"), *(Way(name, count) for count in keys for name in ("window", "lsh"))]


def size(keys: int) -> int:
    """Tokens of the window: LSH reads its own, on average half of a block, and the keys."""
    return lsh.WINDOW + lsh.BLOCK // 2 + keys


def window(q: Tensor, k: Tensor, v: Tensor, scale: float, size: int) -> Tensor:
    """Exact attention to the sinks and the last `size` tokens. q: of all tokens."""
    tokens, outs = k.shape[2], []
    for start in range(0, tokens, 512):
        end, near = min(start + 512, tokens), max(start - size + 1, 0)
        kept = torch.cat([torch.arange(min(lsh.SINKS, near)), torch.arange(near, end)])
        own = torch.arange(start, end)[:, None]
        seen = (kept <= own) & ((kept > own - size) | (kept < lsh.SINKS))
        outs.append(scaled_dot_product_attention(q[:, :, start:end], k[:, :, kept], v[:, :, kept], attn_mask=seen,
                                                 scale=scale, enable_gqa=True))  # fmt: skip
    return torch.cat(outs, 2)


@torch.no_grad()
def attending(base: Base, way: Callable[..., Tensor], ids: Tensor) -> Tensor:
    """Loss of each token but the first, nats, when every layer attends in this way; the layers call it in their order.

    ids: (1, tokens); more than the base was trained to take are reached by YaRN.
    """

    def how(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
        return way(q, k, v, scaling).transpose(1, 2), None

    AttentionInterface.register("measured", how)
    AttentionMaskInterface.register("measured", lambda *args, **more: None)
    stretch(base, ids.shape[1])
    before = base.model.config._attn_implementation
    base.model.set_attn_implementation("measured")
    hidden = base.backbone(ids, use_cache=False).last_hidden_state[0]
    base.model.set_attn_implementation(before)
    parts = zip(hidden[:-1].split(1024), ids[0, 1:].split(1024), strict=True)
    return torch.cat([cross_entropy(base.head(states).float(), target, reduction="none") for states, target in parts])


def stretch(base: Base, tokens: int) -> None:
    """Rotary positions for so many tokens, as `load_base` gives them (`positions.stretch`)."""
    config = deepcopy(base.model.config)
    positions.stretch(config, tokens, where=base.name)
    base.backbone.rotary_emb = type(base.backbone.rotary_emb)(config)


def in_turns(works: Sequence[Callable[[], float]]) -> list[list[float]]:
    """What each work says of its seconds, in ROUNDS rounds of all; one that took over PATIENCE is not done again."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, of in zip(works, taken, strict=True):
            if not of or of[0] < PATIENCE:
                of.append(work())
    return taken


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
