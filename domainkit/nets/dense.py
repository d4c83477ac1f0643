"""Causal dense attention of a stretch of tokens that also tells the sums of its softmax.

With them it can be joined with attention to other keys: under one softmax the shares of two sets are weighed by their
sums, and the backward pass of one set needs the output and the sums of both, nothing else (FlashAttention, Dao et al.
2022, arXiv 2205.14135). On a CPU this is torch's own flash kernel, elsewhere plain products.

Shapes, throughout: q (key heads, tokens, group, width), scaled, whose tokens are the last of those of k (key heads,
keys, width) and v (key heads, keys, value width); the widths may differ. `first` (key heads, some) is added to the
scores of the first keys, which every token sees. Sums are logarithms, float32, of shape (key heads, tokens, group).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def dense(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """(key heads, tokens, group, value width), and the sums."""
    if q.device.type != "cpu":
        return _dense(q, k, v, first)
    _, given = _given(q, k, v)
    out, sums = _FLASH(*given, attn_mask=_mask(q, k, first), scale=1.0)
    return out[..., : v.shape[2]].transpose(1, 2), sums.float().mT


def dense_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, out: Tensor,
                   sums: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
    """What of the gradients of q, k and v goes through these keys; out and sums: of everything that was read."""
    if q.device.type != "cpu":
        return _dense_backward(grad, q, k, v, first, out, sums)
    width, given = _given(q, k, v)
    known = _wide(out, width).transpose(1, 2), sums.mT.contiguous().to(torch.promote_types(q.dtype, torch.float32))
    mask = _mask(q, k, first)
    moved = _FLASH_BACKWARD(_wide(grad, width).transpose(1, 2), *given, *known, 0.0, False, attn_mask=mask, scale=1.0)
    to_q, to_k, to_v = moved[0].transpose(1, 2), moved[1].sum(1), moved[2].sum(1)
    return to_q[..., : k.shape[2]], to_k[..., : k.shape[2]], to_v[..., : v.shape[2]]


def _dense(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k, first)
    sums = scores.logsumexp(2)
    out = torch.bmm((scores - sums[..., None]).exp().to(v.dtype), v)
    return out.unflatten(1, q.shape[1:3]), sums.unflatten(1, q.shape[1:3])


def _dense_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, out: Tensor,
                    sums: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
    drift = (grad.float() * out.float()).sum(-1).flatten(1)[..., None]
    shares = (_scores(q, k, first) - sums.flatten(1)[..., None]).exp()
    moves = (torch.bmm(grad.flatten(1, 2), v.mT).float() - drift) * shares
    moves, shares = moves.to(q.dtype), shares.to(q.dtype)
    to_q = torch.bmm(moves, k).unflatten(1, q.shape[1:3])
    return to_q, torch.bmm(moves.mT, q.flatten(1, 2)), torch.bmm(shares.mT, grad.flatten(1, 2))


def _scores(q: Tensor, k: Tensor, first: Tensor) -> Tensor:
    """(key heads, tokens * group, keys), float32"""
    mask = _mask(q, k, first)[:, 0].float().repeat_interleave(q.shape[2], 1)
    return torch.bmm(q.flatten(1, 2), k.mT).float() + mask


def _mask(q: Tensor, k: Tensor, first: Tensor) -> Tensor:
    """(key heads or 1, 1, tokens, keys): what is added to the scores."""
    causal = _causal(q.shape[1], k.shape[1] - first.shape[1], q.dtype, q.device)[None]
    if first.shape[1]:
        causal = torch.cat([first[:, None].expand(-1, q.shape[1], -1), causal.expand(len(first), -1, -1)], 2)
    return causal[:, None]


@lru_cache(maxsize=4)  # nearly all blocks have one shape
def _causal(tokens: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(tokens, keys): 0, or -inf for keys that come later."""
    return torch.full((tokens, keys), -torch.inf, dtype=dtype, device=device).triu_(keys - tokens + 1)


def _given(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, list[Tensor]]:
    """The width that the kernel sees, and q, k and v as it takes them; keys of the group's heads are not copied."""
    width = max(k.shape[2], v.shape[2])
    shared = [_wide(of, width)[:, None].expand(-1, q.shape[2], -1, -1) for of in (k, v)]
    return width, [_wide(q, width).transpose(1, 2), *shared]


def _wide(of: Tensor, width: int) -> Tensor:
    """Zeros added, since the kernel knows one width only."""
    return of if of.shape[-1] == width else pad(of, (0, width - of.shape[-1]))
