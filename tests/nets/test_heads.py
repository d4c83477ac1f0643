"""MeanClassifier pools per sequence."""

import torch

from domainkit.nets.heads import MeanClassifier


def test_each_sequence_is_pooled_by_itself() -> None:
    torch.manual_seed(0)
    head, hidden = MeanClassifier(8, 3), torch.randn(7, 8)
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 2])
    together = head(hidden, owner)
    alone = torch.cat([head(hidden[owner == i], torch.zeros(int((owner == i).sum()), dtype=int)) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert together.shape == (3, 3)
