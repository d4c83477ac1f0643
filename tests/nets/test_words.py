"""Words: ridge regression on token n-grams, judged out of fold while something is trained on top."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from domainkit.nets.words import Words, _ridge

PREFIX = 1
TEXTS = [(PREFIX, label + 10, 30 + i, label + 20) for label in range(3) for i in range(8)]
GOLD = [label for label in range(3) for _ in range(8)]
GROUPS = [f"{label}-{i // 2}" for label in range(3) for i in range(8)]  # two texts each


@pytest.fixture
def words() -> Words:
    made = Words(3, vocabulary=50)
    made.solve(TEXTS, GOLD, GROUPS)
    return made


def test_what_was_learned_is_found_again(words: Words) -> None:
    assert words.eval()([(PREFIX, 11, 49), (PREFIX, 12, 49), (PREFIX, 40, 20)]).argmax(-1).tolist() == [1, 2, 0]


def test_it_gives_log_probabilities(words: Words) -> None:
    torch.testing.assert_close(words.eval()(TEXTS).exp().sum(-1), torch.ones(len(TEXTS)))


def test_each_text_is_judged_by_itself(words: Words) -> None:
    together = words.eval()(TEXTS)
    torch.testing.assert_close(torch.cat([words([text]) for text in TEXTS]), together)


def test_while_training_a_text_is_judged_by_others(words: Words) -> None:
    """Labels that follow from nothing are learned by heart; only the unbiased answers may show it."""
    torch.manual_seed(0)
    noise = torch.randint(0, 3, (len(TEXTS),)).tolist()
    texts = [(PREFIX, 100 + i, 200 + i) for i in range(len(TEXTS))]
    made = Words(3, vocabulary=300)
    made.solve(texts, noise, [str(i) for i in range(len(texts))])
    right = {mode: made.train(mode)(texts).argmax(-1).eq(torch.tensor(noise)).float().mean() for mode in (True, False)}
    assert right[False] == 1.0 and right[True] < 0.6


def test_texts_of_one_document_do_not_judge_each_other() -> None:
    """Twins in one group: with the twin in the other folds the label would be known."""
    texts = [(PREFIX, 5 + i // 2, 30 + i) for i in range(20)]
    gold = [i // 2 % 2 for i in range(20)]
    made = Words(2, vocabulary=60)
    made.solve(texts, gold, [str(i // 2) for i in range(20)])
    together = made.train()(texts)
    made.solve(texts, gold, [str(i) for i in range(20)])
    apart = made.train()(texts)
    truth = torch.tensor(gold)
    assert together.argmax(-1).eq(truth).float().mean() < 0.7 < apart.argmax(-1).eq(truth).float().mean()


def test_rare_tokens_weigh_more_and_unseen_ones_nothing(words: Words) -> None:
    assert words.rarity[30] > words.rarity[10] > 0
    assert words.rarity[49] == 0
    torch.testing.assert_close(words.eval()([(PREFIX, 49)]), words.bias.log_softmax(-1)[None])


def test_the_prefix_token_is_no_evidence(words: Words) -> None:
    torch.testing.assert_close(words.eval()([(PREFIX, 11, 12)]), words([(2, 11, 12)]))


def test_balanced_classes_count_alike() -> None:
    """Nine texts of one label and one of the other, all alike: neither label is the likelier one."""
    weight, bias = _ridge(csr_matrix(np.ones((10, 1))), torch.tensor([0] * 9 + [1]), 2)
    assert (weight[0] + bias).abs().max() < 1e-6


def test_one_document_is_enough() -> None:
    made = Words(3, vocabulary=50)
    made.solve(TEXTS, GOLD, ["one"] * len(TEXTS))
    assert made.eval()(TEXTS).argmax(-1).tolist() == GOLD


def test_the_weights_travel_with_the_state(words: Words) -> None:
    other = Words(3, vocabulary=50)
    other.load_state_dict(words.state_dict())
    torch.testing.assert_close(other.eval()(TEXTS), words.eval()(TEXTS))
