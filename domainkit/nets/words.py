"""What the words of a text say about its label, solved in one step on every labelled text there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

PHRASES = 1 << 17  # hash buckets for runs of two and three tokens
FOLDS = 5  # parts that the labelled texts are cut into, to hear of each what the other four say
RIDGE = 1.0  # penalty on the squared weights; scikit-learn's default, good for rows of unit length

Ids = Sequence[int]


class Words(nn.Module):
    """Ridge regression on TF-IDF weighted tokens, pairs and triples, each label against the rest, classes balanced.

    It needs no trunk, so it learns from texts the model never read. A squared loss against ±1 puts the borders
    better than logistic regression when features outnumber texts (Rifkin & Klautau, In Defense of One-Vs-All, 2004).
    Scores become log-probabilities by one temperature (Guo et al., arXiv 1706.04599).

    forward(texts): token ids of each sequence → log-probabilities (sequences, labels). In training mode a text it
    learned from is judged by the folds that left its document out, so that whatever is trained on top meets the
    mistakes it will meet later.
    """

    rarity: Tensor  # (vocabulary + PHRASES,) inverse document frequency; 0 for what no text has
    weight: Tensor  # (vocabulary + PHRASES, labels)
    bias: Tensor  # (labels,)
    texts: Tensor  # (texts,) int64: hashes of those it learned from; like the next not saved with the weights
    unbiased: Tensor  # (texts, labels): scores of each by the folds without it

    def __init__(self, labels: int, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("rarity", torch.zeros(vocabulary + PHRASES))
        self.register_buffer("weight", torch.zeros(vocabulary + PHRASES, labels))
        self.register_buffer("bias", torch.zeros(labels))
        self.register_buffer("texts", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("unbiased", torch.zeros(0, labels), persistent=False)

    def solve(self, texts: Sequence[Ids], gold: Sequence[int], groups: Sequence[str]) -> None:
        """Learn from texts, the index of each one's label, and the document each is from."""
        from scipy.optimize import minimize_scalar
        from sklearn.model_selection import GroupKFold

        self._count(texts)
        rows, truth = self._matrix(texts), torch.tensor(gold)
        unbiased = torch.zeros(len(texts), len(self.bias))
        apart = groups if len(set(groups)) > 1 else [str(i) for i in range(len(texts))]
        for learn, judge in GroupKFold(min(FOLDS, len(set(apart)))).split(rows, groups=apart):
            weight, bias = _ridge(rows[learn], truth[learn], len(self.bias))
            unbiased[judge] = torch.from_numpy(rows[judge] @ weight.numpy()).float() + bias.float()
        heat = minimize_scalar(partial(_surprise, unbiased, truth), bounds=(0.1, 50), method="bounded").x
        weight, bias = _ridge(rows, truth, len(self.bias))
        self.weight.copy_(weight * heat)
        self.bias.copy_(bias * heat)
        self.texts, self.unbiased = torch.tensor([_named(ids) for ids in texts]), unbiased * heat

    def forward(self, texts: Sequence[Ids]) -> Tensor:
        known = {name: at for at, name in enumerate(self.texts.tolist())} if self.training else {}
        places = [known.get(_named(ids)) for ids in texts]
        rows = [self._score(ids) if at is None else self.unbiased[at] for at, ids in zip(places, texts, strict=True)]
        return torch.stack(rows).log_softmax(-1)

    def _score(self, ids: Ids) -> Tensor:
        index, value = self._features(ids)
        return value @ self.weight[index] + self.bias

    def _count(self, texts: Sequence[Ids]) -> None:
        found = Counter(feature for ids in texts for feature in self._ngrams(ids))
        index = torch.tensor(list(found), dtype=torch.long)
        counts = torch.tensor(list(found.values()), dtype=torch.float32)
        self.rarity.zero_()
        self.rarity[index] = 1 + ((1 + len(texts)) / (1 + counts)).log().to(self.rarity.device)

    def _features(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Indices and unit-length TF-IDF values of a text's features."""
        index = torch.tensor(sorted(self._ngrams(ids)), dtype=torch.long, device=self.rarity.device)
        return index, nn.functional.normalize(self.rarity[index], dim=0)

    def _matrix(self, texts: Sequence[Ids]):  # type: ignore[no-untyped-def]  # scipy has no types
        from scipy.sparse import csr_matrix

        found = [self._features(ids) for ids in texts]
        sizes = torch.tensor([0, *(len(index) for index, _ in found)]).cumsum(0)
        index, value = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
        return csr_matrix((value, index, sizes.numpy()), shape=(len(texts), len(self.rarity)))

    def _ngrams(self, ids: Ids) -> set[int]:
        words = ids[1:]  # the first is the prefix token
        pairs = {a * 1_000_003 + b * 7919 for a, b in pairwise(words)}
        triples = {
            a * 1_000_003 + b * 7919 + c * 104_729 + 1 for a, b, c in zip(words, words[1:], words[2:], strict=False)
        }
        return set(words) | {self.vocabulary + key % PHRASES for key in pairs | triples}


def _named(ids: Ids) -> int:
    """64 bits of a text: Python's hash of a tuple of numbers is the same in every process."""
    return hash(tuple(ids))


def _surprise(scores: Tensor, gold: Tensor, scale: float) -> float:
    """Cross-entropy at a scale; smoothed, so that a few texts, all right, do not make it certain (Platt 1999)."""
    return float(nn.functional.cross_entropy(scores * scale, gold, label_smoothing=1 / (len(gold) + 2)))


def _ridge(rows, gold: Tensor, labels: int) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Weights (features, labels) and bias (labels,), float64, of every label against the rest."""
    from sklearn.linear_model import Ridge

    targets = 2.0 * nn.functional.one_hot(gold, labels) - 1
    balance = len(gold) / torch.bincount(gold, minlength=labels).clamp(min=1)
    solved = Ridge(alpha=RIDGE).fit(rows, targets.numpy(), sample_weight=balance[gold].numpy())
    return torch.from_numpy(solved.coef_.reshape(labels, -1).T.copy()).double(), torch.from_numpy(solved.intercept_)
