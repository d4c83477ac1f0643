"""Which term of one language a term of another means, read off the rows that stand for them in an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

# Chosen for the finance glossary on a tenth of its known terms, kept from the fit.
RIDGE = 0.01  # penalty on what is fitted
LOCAL = 0.1  # weight of the Gaussian kernel beside the linear one
REACH = 0.1  # squared width of the Gaussian, in mean squared lengths of the forms' rows
NEAREST = 10  # predictions whose mean cosine tells how crowded the place of an answer is


class Translator(nn.Module):
    """Bilingual lexicon induction on embedding rows, solved in one step from the pairs that are known.

    Kernel ridge regression (Saunders et al., Ridge Regression Learning Algorithm in Dual Variables, 1998) takes a row
    of one language to the direction of its translation's row. The kernel is linear, for what all pairs share, plus
    Gaussian, for what near ones do. Of the answers the nearest wins, with a handicap for those near to everything
    (CSLS: Conneau et al., Word Translation Without Parallel Data, arXiv 1710.04087).

    It keeps no row of an answer: those stand in the model. A saved one is loaded whatever number of forms it learned.

    forward(rows, table): rows (queries, width) of what is asked; table (answers, width) of the answers → scores
    (queries, answers): twice the cosine, less the handicap.
    """

    ids: Tensor  # (answers,) int64: token ids
    known: Tensor  # (answers,) bool: those that have a form it learned from
    forms: Tensor  # (known forms, width): rows less their mean
    middle: Tensor  # (width,): that mean
    weight: Tensor  # (known forms, width): dual coefficients
    crowd: Tensor  # (answers,): mean cosine of the predictions nearest to each

    def __init__(self, ids: Sequence[int], known: Sequence[bool], width: int, *, newline: int, closing: int) -> None:
        """ids, known: see the buffers. newline: token that ends the line before the form in a query. closing: number
        of tokens that follow the form."""
        super().__init__()
        self.newline, self.closing = newline, closing
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long))
        self.register_buffer("known", torch.tensor(known, dtype=torch.bool))
        self.register_buffer("forms", torch.zeros(0, width))
        self.register_buffer("middle", torch.zeros(width))
        self.register_buffer("weight", torch.zeros(0, width))
        self.register_buffer("crowd", torch.zeros(len(ids)))

    @torch.no_grad()
    def solve(self, rows: Tensor, answer: Tensor, table: Tensor) -> None:
        """Learn from rows (forms, width), the index (forms,) of each one's answer, and table (answers, width)."""
        rows, targets = rows.to(self.middle), _directions(table.to(self.middle))
        self.middle = rows.mean(0)
        self.forms = rows - self.middle
        gold = targets[answer.to(targets.device)]  # (forms, width)
        gram = self._kernel(self.forms)
        gram.diagonal().add_(RIDGE)
        self.weight = torch.cholesky_solve(gold, torch.linalg.cholesky(gram))
        del gram  # hundreds of megabytes
        predicted = normalize(gold - RIDGE * self.weight, dim=-1)  # kernel @ weight, by the equation just solved
        near = targets @ predicted.T  # (answers, forms)
        self.crowd = near.topk(min(NEAREST, len(rows)), dim=1).values.mean(1)

    def forward(self, rows: Tensor, table: Tensor) -> Tensor:
        predicted = normalize(self._kernel(rows.to(self.middle) - self.middle) @ self.weight, dim=-1)
        return 2 * predicted @ _directions(table.to(self.middle)).T - self.crowd

    def cosines(self, scores: Tensor) -> Tensor:
        """The cosines, -1 to 1, behind scores of all answers: (queries, answers)."""
        return ((scores + self.crowd) / 2).clamp(-1, 1)

    def asked(self, query: Sequence[int]) -> Sequence[int]:
        """The token ids of the form that a query asks for: those of its last line, without the closing ones."""
        start = len(query) - query[::-1].index(self.newline)
        return query[start : len(query) - self.closing]

    def _kernel(self, rows: Tensor) -> Tensor:
        """Likeness of centred rows (queries, width) to the forms: (queries, forms). In place: it may be large."""
        sizes = self.forms.square().sum(-1)
        scale = sizes.mean().clamp(min=torch.finfo(sizes.dtype).tiny)  # a single form lies in the middle
        inner = rows @ self.forms.T
        apart = (inner * -2).add_(sizes).add_(rows.square().sum(-1, keepdim=True)).clamp_(min=0)  # squared distances
        return inner.div_(scale).add_(apart.div_(-REACH * scale).exp_(), alpha=LOCAL)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """Make room for as many forms as were saved, then load them."""
        for name in ("forms", "weight"):
            if prefix + name in state_dict:
                setattr(self, name, self.middle.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *more)


def _directions(table: Tensor) -> Tensor:
    """Rows of unit length about their mean: (answers, width)."""
    return normalize(table - table.mean(0), dim=-1)
