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


def opinions() -> tuple[torch.Tensor, torch.Tensor]:
    """What the words say of 200 texts, wrong about a third of them, and the truth."""
    torch.manual_seed(2)
    gold = torch.randint(3, (200,))
    said = torch.where(torch.rand(200) < 0.33, torch.randint(3, (200,)), gold)
    return torch.nn.functional.one_hot(said, 3).float().mul(3).log_softmax(-1), gold


def test_a_deep_part_that_only_guesses_is_weighed_nothing() -> None:
    wide, gold = opinions()
    made = head()
    made.settle(wide, -torch.nn.functional.one_hot(gold, 3).float(), gold)
    assert made.weight.item() == 0


def test_a_deep_part_that_knows_is_weighed_by_what_it_is_worth() -> None:
    wide, gold = opinions()
    deep = 4 * torch.nn.functional.one_hot(gold, 3).float() + 3 * torch.randn(200, 3)
    made = head()
    made.settle(wide, deep, gold)
    grid = torch.linspace(0, 1, 1001)
    losses = [torch.nn.functional.cross_entropy(wide + w * deep, gold).item() for w in grid]
    assert 0.05 < made.weight.item() < 0.95
    assert abs(made.weight.item() - grid[losses.index(min(losses))].item()) < 0.002


def test_the_weight_is_kept_with_the_head() -> None:
    made, again = head(), head()
    made.settle(*(lambda wide, gold: (wide, 9.0 * torch.nn.functional.one_hot(gold, 3), gold))(*opinions()))
    assert made.weight.item() > 0.9
    again.load_state_dict(made.state_dict())
    assert again.weight == made.weight


def test_gradients_reach_the_states_but_not_the_words() -> None:
    made, (hidden, owner) = trained(), batch()
    hidden.requires_grad_()
    made(hidden, owner, TEXTS)[:, 0].sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert not list(made.words.parameters())
