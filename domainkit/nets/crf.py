"""A linear chain over tags: which sequence of them is the likeliest, not only which tag of each token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

NEVER = -1e4  # score of a transition that does not exist


class Crf(nn.Module):
    """Conditional random field over the tags of `data.bio`: a span goes on only after itself.

    A text may begin inside a span, for it may be a window. Sources: Lafferty et al. 2001; on top of a BiLSTM: Huang et
    al. 2015, arXiv 1508.01991.
    """

    allowed: Tensor  # (tags, tags): 0, or NEVER where the second cannot follow the first

    def __init__(self, labels: int) -> None:
        super().__init__()
        tags = 1 + 2 * labels
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        first, second = torch.arange(tags)[:, None], torch.arange(tags)[None]
        goes_on = (second > 0) & (second % 2 == 0)
        same = (first == second) | (first == second - 1)
        self.register_buffer("allowed", torch.where(goes_on & ~same, NEVER, 0.0))

    def loss(self, logits: Sequence[Tensor], tags: Sequence[Tensor]) -> Tensor:
        """Minus the log-likelihood of the tags of all texts, summed, nats. logits: (tokens, tags) each; tags: (tokens,)
        int64 each.

        The sum over all sequences of tags is a product of matrices in the log semiring, one per token, multiplied in
        pairs: log2(tokens) steps in place of one per token (Särkkä and García-Fernández 2021, arXiv 2102.05743).
        """
        scores, gold = pad_sequence(list(logits), True), pad_sequence(list(tags), True)  # (texts, longest, …)
        inside, steps = self._inside(logits), self.transitions + self.allowed
        own, moves = scores.gather(2, gold[..., None])[..., 0], steps[gold[:, :-1], gold[:, 1:]]
        told = (own * inside).sum(1) + (moves * inside[:, 1:]).sum(1)
        stay = torch.full_like(steps, NEVER).fill_diagonal_(0.0)  # what padding does
        chain = torch.where(inside[:, 1:, None, None], steps + scores[:, 1:, None], stay)  # (texts, moves, tags, tags)
        chain = torch.cat([stay.expand(len(chain), 1, -1, -1), chain], 1)
        while chain.shape[1] > 1:
            if chain.shape[1] % 2:
                chain = torch.cat([chain, stay.expand(len(chain), 1, -1, -1)], 1)
            chain = (chain[:, ::2, :, :, None] + chain[:, 1::2, None]).logsumexp(3)
        return ((scores[:, 0, :, None] + chain[:, 0]).flatten(1).logsumexp(1) - told).sum()

    @torch.no_grad()
    def best(self, logits: Sequence[Tensor]) -> list[list[int]]:
        """The likeliest tags of each text (Viterbi 1967)."""
        scores, inside = pad_sequence(list(logits), True), self._inside(logits)
        steps, total, back = self.transitions + self.allowed, scores[:, 0], list[list[list[int]]]()
        for i in range(1, scores.shape[1]):
            most, before = (total[:, :, None] + steps).max(1)
            total = torch.where(inside[:, i, None], most + scores[:, i], total)
            back.append(before.tolist())
        found = []
        for text, last in enumerate(total.argmax(1).tolist()):
            tags = [last]
            for i in range(len(logits[text]) - 2, -1, -1):
                tags.append(back[i][text][tags[-1]])
            found.append(tags[::-1])
        return found

    @staticmethod
    def _inside(logits: Sequence[Tensor]) -> Tensor:
        """Which places are no padding: (texts, longest) bool."""
        sizes = torch.tensor([len(one) for one in logits], device=logits[0].device)
        return torch.arange(int(sizes.max()), device=sizes.device) < sizes[:, None]
