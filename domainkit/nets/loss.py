"""Cross-entropy through a frozen output head, a block of tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512  # tokens per block: 512 x 49,152 float32 logits are 100 MB; larger blocks were no faster


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        grad = torch.empty_like(hidden)
        total = hidden.new_zeros(())
        for start in range(0, len(hidden), BLOCK):
            rows = slice(start, start + BLOCK)
            gold = target[rows, None]
            logits = _logits(hidden[rows], weight)
            norm = logits.logsumexp(-1, keepdim=True)
            total += (norm - logits.gather(1, gold)).sum()
            logits.sub_(norm).exp_()  # softmax in place: the logits are never needed again
            logits.scatter_add_(1, gold, torch.full_like(gold, -1, dtype=logits.dtype))
            grad[rows] = logits.to(weight.dtype) @ weight
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, scale: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * scale, None, None


def head_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Summed cross-entropy, in nats, of `hidden @ weight.T` against `target`.

    The head is frozen, so loss and gradient of a block come from one product each and no (tokens, vocabulary)
    tensor outlives its block: the arithmetic of `F.cross_entropy(F.linear(…))` with the memory of one block.
    The same idea as Liger Kernel (arXiv 2410.10989) and Cut Cross-Entropy (arXiv 2411.09009), in plain torch.

    hidden: (tokens, width), float32 or more; weight: (vocabulary, width), must not require a gradient, its products are
    made in its own dtype; target: (tokens,) int64. Raises ValueError when the head is trainable.
    """
    if weight.requires_grad:
        raise ValueError("head_cross_entropy needs a frozen head; its weight requires a gradient")
    if not torch.is_grad_enabled():
        return -token_logprobs(hidden, weight, target).sum()
    return _HeadCrossEntropy.apply(hidden, weight, target)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """(block, vocabulary), float32 or more."""
    return (hidden.to(weight.dtype) @ weight.T).to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def token_logprobs(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Log-probability, in nats, of each target token: (tokens,). Same shapes as `head_cross_entropy`."""
    blocks = []
    for start in range(0, len(hidden), BLOCK):
        rows = slice(start, start + BLOCK)
        logits = _logits(hidden[rows], weight)
        blocks.append(logits.gather(1, target[rows, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(blocks) if blocks else hidden.new_zeros(0)
