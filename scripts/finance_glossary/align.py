"""How well a Chinese form renders an English one, learnt from all pairs of the dictionaries together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

ROUNDS = 5
SMALL = frozenset(("of", "the", "a", "an", "in", "on", "at", "to", "for", "and", "or", "by", "with", "from"))
LIKELY = 0.03  # a translation at least this probable explains the character or word

Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Aligner:
    """IBM model 1 in both directions, between English words and Chinese characters."""

    to_zh: Table
    to_en: Table

    @classmethod
    def fit(cls, pairs: Iterable[tuple[str, str]]) -> Aligner:
        split = [(words(en), list(zh)) for en, zh in pairs]
        return cls(_model(split), _model([(zh, en) for en, zh in split]))

    def score(self, en: str, zh: str) -> float:
        """0 … 1: the mean share of characters and of words that the other side explains."""
        left, right = words(en), list(zh)
        return (_explained(self.to_zh, left, right) + _explained(self.to_en, right, left)) / 2


def words(en: str) -> list[str]:
    return [word for word in en.lower().replace("-", " ").split() if word not in SMALL] or en.lower().split()


def _model(pairs: list[tuple[list[str], list[str]]]) -> Table:
    """Probability of each target given each source word."""
    table: Table = {}
    for _ in range(ROUNDS):
        counts: Table = defaultdict(lambda: defaultdict(float))
        for source, target in pairs:
            for item in target:
                weights = [table[word][item] if table else 1.0 for word in source]
                total = sum(weights)
                for word, weight in zip(source, weights, strict=True):
                    counts[word][item] += weight / total
        table = {}
        for word, row in counts.items():
            mass = sum(row.values()) + 1  # one unseen: a word met once proves little
            table[word] = defaultdict(float, {item: count / mass for item, count in row.items()})
    return table


def _explained(table: Table, source: list[str], target: list[str]) -> float:
    best = (max(table.get(word, {}).get(item, 0.0) for word in source) for item in target)
    return sum(probability >= LIKELY for probability in best) / len(target)
