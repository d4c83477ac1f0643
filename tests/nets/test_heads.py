"""WideDeepClassifier: pooled per sequence, on top of what the words say."""

import torch

from domainkit.nets.heads import CAUTION, WideDeepClassifier

TEXTS = [(1, 5, 6), (1, 7), (1, 5, 5, 9, 8)]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor([len(t) for t in TEXTS]))
    return torch.randn(len(owner), 8), owner


def head() -> WideDeepClassifier:
    torch.manual_seed(1)
    made = WideDeepClassifier(8, 3, vocabulary=20)
    made.words.solve(TEXTS, [0, 1, 2], ["a", "b", "c"])
    return made.eval()


def trained() -> WideDeepClassifier:
    made = head()
    torch.nn.init.normal_(made.deep.weight)
    return made


def test_each_sequence_is_judged_by_itself() -> None:
    made, (hidden, owner) = trained(), batch()
    together = made(hidden, owner, TEXTS)
    assert together.shape == (3, 3)
    for i, text in enumerate(TEXTS):
        mine = owner == i
        alone = made(hidden[mine], torch.zeros(int(mine.sum()), dtype=torch.long), [text])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_it_gives_log_probabilities() -> None:
    torch.testing.assert_close(trained()(*batch(), TEXTS).exp().sum(-1), torch.ones(3))


def test_untrained_it_says_what_the_words_say() -> None:
    made = head()
    torch.testing.assert_close(made(*batch(), TEXTS), made.words(TEXTS))


def test_the_mean_is_what_the_deep_part_sees() -> None:
    made, (hidden, owner) = trained(), batch()
    mean = hidden[owner == 2].mean(0)
    expected = (made.words(TEXTS[2:])[0] + CAUTION * made.deep(made.norm(mean))).log_softmax(-1)
    torch.testing.assert_close(made(hidden, owner, TEXTS)[2], expected)


def test_gradients_reach_the_states_but_not_the_words() -> None:
    made, (hidden, owner) = trained(), batch()
    hidden.requires_grad_()
    made(hidden, owner, TEXTS)[:, 0].sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert not list(made.words.parameters())
