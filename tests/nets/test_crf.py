"""The chain: against every sequence of tags, one by one."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from domainkit.nets.crf import NEVER, Crf

LABELS, TAGS = 2, 5

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def crf() -> Crf:
    torch.manual_seed(0)
    made = Crf(LABELS)
    torch.nn.init.normal_(made.transitions)
    return made


def every(crf: Crf, logits: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Sequence of tags → its score."""
    steps = (crf.transitions + crf.allowed).detach()
    return {
        tags: float(
            sum(logits[i, tag] for i, tag in enumerate(tags)) + sum((steps[a, b] for a, b in pairwise(tags)), start=0.0)
        )
        for tags in product(range(TAGS), repeat=len(logits))
    }


def test_the_likelihood_is_that_of_all_sequences(crf: Crf) -> None:
    texts = [torch.randn(4, TAGS), torch.randn(2, TAGS), torch.randn(1, TAGS)]
    gold = [torch.tensor([0, 1, 2, 3]), torch.tensor([2, 2]), torch.tensor([4])]
    expected = 0.0
    for logits, tags in zip(texts, gold, strict=True):
        scores = every(crf, logits)
        expected += float(torch.tensor(list(scores.values())).logsumexp(0)) - scores[tuple(tags.tolist())]
    assert crf.loss(texts, gold).item() == pytest.approx(expected, rel=1e-5)


def test_the_best_sequence_is_the_best_of_all(crf: Crf) -> None:
    texts = [torch.randn(4, TAGS), torch.randn(1, TAGS), torch.randn(3, TAGS)]
    for logits, found in zip(texts, crf.best(texts), strict=True):
        scores = every(crf, logits)
        assert tuple(found) == max(scores, key=lambda tags: scores[tags])


@pytest.mark.parametrize(("first", "second"), [(0, 2), (0, 4), (1, 4), (2, 4), (3, 2), (4, 2)])
def test_a_span_goes_on_only_after_itself(crf: Crf, first: int, second: int) -> None:
    assert crf.allowed[first, second] == NEVER
    logits = torch.zeros(2, TAGS)
    logits[0, first] = logits[1, second] = 50.0
    assert crf.best([logits])[0] != [first, second]


def test_the_transitions_learn(crf: Crf) -> None:
    texts, gold = [torch.zeros(3, TAGS)], [torch.tensor([1, 2, 2])]
    crf.loss(texts, gold).backward()
    assert crf.transitions.grad is not None
    assert crf.transitions.grad[1, 2] < 0 < crf.transitions.grad[0, 0]
