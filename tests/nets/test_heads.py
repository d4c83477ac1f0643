"""WideDeepClassifier: pooled per sequence, weighted by rarity."""

import torch

from domainkit.nets.heads import REACH, WideDeepClassifier

TEXTS = [(1, 5, 6), (1, 7), (1, 5, 5, 9, 8)]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor([len(t) for t in TEXTS]))
    return torch.randn(len(owner), 8), owner


def head() -> WideDeepClassifier:
    torch.manual_seed(1)
    made = WideDeepClassifier(8, 4, vocabulary=20)
    torch.nn.init.normal_(made.wide.weight)
    made.observe(TEXTS)
    return made


def test_each_sequence_is_judged_by_itself() -> None:
    made, (hidden, owner) = head(), batch()
    together = made(hidden, owner, TEXTS)
    assert together.shape == (2, 3, 4)
    for i, text in enumerate(TEXTS):
        mine = owner == i
        alone = made(hidden[mine], torch.zeros(int(mine.sum()), dtype=torch.long), [text])
        torch.testing.assert_close(together[:, i : i + 1], alone)


def test_each_part_gives_log_probabilities() -> None:
    made, (hidden, owner) = head(), batch()
    torch.testing.assert_close(made(hidden, owner, TEXTS).exp().sum(-1), torch.ones(2, 3))


def test_rare_tokens_weigh_more_and_unseen_ones_nothing() -> None:
    made = head()
    assert made.rarity[9] > made.rarity[5] > 0  # in one text, in two
    assert made.rarity[11] == 0
    wide = made._evidence([(1, 11)])
    torch.testing.assert_close(wide, torch.zeros(1, 4))


def test_the_wide_features_have_one_length_whatever_the_text() -> None:
    made = head()
    with torch.no_grad():
        made.wide.weight.fill_(1.0)
    one, many = made._evidence([(1, 5), (1, 5, 6, 7, 8, 9)])
    assert torch.allclose(one, torch.full((4,), REACH)) and many[0] > one[0]


def test_the_prefix_token_is_no_evidence() -> None:
    assert 1 not in head()._features((1, 5, 6))


def test_gradients_reach_states_and_words() -> None:
    made, (hidden, owner) = head(), batch()
    hidden.requires_grad_()
    made(hidden, owner, TEXTS).sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert made.wide.weight.grad is not None and made.wide.weight.grad[5].abs().sum() > 0
