"""How much each task's loss weighs, learned with everything else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

SPEED = 30.0  # an optimizer such as AdamW moves a parameter by the learning rate a step, whatever its scale: too little


class Balance(nn.Module):
    """Weights by the uncertainty of each task: Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10.

    A task's loss is divided by its variance, which is learned, and pays the variance's logarithm; so a task whose loss
    stays large counts less, and none can make itself small. They begin alike.
    forward(task, loss, share): a loss () → what to minimize, (). share: of the whole loss, where a step is put together
    from several; the logarithm is paid once.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.logs = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})

    def forward(self, task: str, loss: Tensor, share: float = 1.0) -> Tensor:
        own = self.logs[task]
        log = SPEED * own.detach() + (own - own.detach())  # moves fast, without a gradient that drowns the others
        return loss * (-log).exp() + share * log

    def weights(self) -> dict[str, float]:
        """Task → what its loss is multiplied by now."""
        return {task: float((-SPEED * log.detach()).exp()) for task, log in self.logs.items()}
