"""`attention="lsh"`: LSH attention for any Hugging Face decoder, by name, through Transformers' own interfaces.

Inputs so short that the dense kernel is faster take it, and so does all that is not causal. Of longer ones no mask of
queries x keys is built: only a number for each token, that of its document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from domainkit.model.crossover import AT, crossover
from domainkit.model.precision import quick
from domainkit.nets.lsh import Index, attend

NAME = "lsh"
WHOLE = ("avx512_vnni", "avx_vnni", "amx_int8")  # a CPU's instructions for whole numbers of 8 bits
_indexes: WeakKeyDictionary[nn.Module, Index] = WeakKeyDictionary()  # of each layer's last text, which may grow


def register() -> None:
    """Make the name known to Transformers. Without the mask's function, padding would never reach the attention."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _short(tokens: int, device: torch.device | str) -> bool:
    kind = torch.device(device).type
    return tokens < AT or tokens < crossover(kind, scored_in(kind))


def _mask(batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
          mask_function: Callable[..., Any] = causal_mask_function, attention_mask: Tensor | None = None,
          device: torch.device | str = "cpu", **rest: Any) -> Tensor | None:  # fmt: skip
    """The dense mask of short inputs; of others the document of each token, (batch, tokens) int64, -1 for padding, or
    None when a row is one document."""
    if not _short(kv_length, device) and not _pairs(batch_size, kv_length, device, mask_function, back=-1).any():
        documents = torch.zeros(batch_size, kv_length, dtype=torch.long, device=device)
        if q_length == kv_length:  # packed documents: Transformers knows them without a cache only
            documents[:, 1:] = (~_pairs(batch_size, kv_length, device, mask_function, back=1)).cumsum(1)
        if attention_mask is not None:
            documents.masked_fill_(~attention_mask[:, kv_offset : kv_offset + kv_length].bool(), -1)
        if not documents.any():
            return None
        if q_length > 1:  # of one query the dense mask is small
            return documents
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask,
                     device=device, **rest)  # fmt: skip


def _pairs(batch: int, tokens: int, device: torch.device | str, sees: Callable[..., Any], *, back: int) -> Tensor:
    """Whether each token but the first sees the one before it (back: 1), or is seen by it (-1): (batch, tokens - 1)."""
    rows = torch.arange(batch, device=device)[:, None]
    later = torch.arange(1, tokens, device=device)[None].expand(batch, -1)
    pair = (later, later - 1) if back == 1 else (later - 1, later)
    return torch.as_tensor(sees(rows, torch.zeros_like(rows), *pair), device=device).expand(batch, -1)


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
               dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None,
               sliding_window: int | None = None, **rest: Any) -> tuple[Tensor, None]:  # fmt: skip
    """As every function of Transformers' AttentionInterface: → (batch, queries, heads, value width)."""
    tokens = key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    dense = attention_mask is not None and attention_mask.ndim == 4
    if dense or not causal or _short(tokens, query.device):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                                      is_causal=is_causal, **rest)  # fmt: skip
    if dropout:
        raise ValueError("LSH attention has no dropout: set attention_dropout to 0, or attention to sdpa")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if sliding_window:
        found = _window(query, key, value, scale, sliding_window, attention_mask)
    else:
        grows = rest.get("use_cache", True) and not torch.is_grad_enabled()  # a text that does not leaves no index
        found = attend(query, key, value, scale, documents=attention_mask, scored_in=scored_in(query.device.type),
                       index=_indexes.setdefault(module, Index()) if grows else None)  # fmt: skip
    return found.transpose(1, 2).contiguous(), None


def choosing(device: str) -> dict[str, object]:
    """What goes by the device: from how many tokens on LSH is taken, and what cells are scored in."""
    dtype = scored_in(device)
    return {"crossover": crossover(device, dtype), "scored_in": str(dtype)}


def scored_in(device: str) -> torch.dtype:
    """What cells are scored in, whole numbers up to 127 (`domainkit.nets.grid`): what the device multiplies fast."""
    if device == "cpu":
        return torch.int8 if any(map(torch.cpu.get_capabilities().get, WHOLE)) else torch.float32
    return torch.bfloat16 if quick(device) else torch.float32


def _window(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, documents: Tensor | None) -> Tensor:
    """Dense attention to the last `window` tokens, in time linear in the tokens: what such a layer was trained with."""
    group, tokens = q.shape[1] // k.shape[1], k.shape[2]
    place, outs = torch.arange(tokens, device=q.device), []
    for start in range(tokens - q.shape[2], tokens, window):
        end, near = min(start + window, tokens), max(start - window + 1, 0)
        own, seen = place[start:end, None], place[None, near:end]
        mask = ((seen <= own) & (seen > own - window))[None, None]
        if documents is not None:
            alike = documents[:, start:end, None] == documents[:, None, near:end]
            mask = mask & alike[:, None]
        rows = slice(start - tokens + q.shape[2], end - tokens + q.shape[2])
        keys, values = (of[:, :, near:end].repeat_interleave(group, 1) for of in (k, v))
        outs.append(scaled_dot_product_attention(q[:, :, rows], keys, values, attn_mask=mask, scale=scale))
    return torch.cat(outs, 2)
