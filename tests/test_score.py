"""Scores against known values, against scikit-learn, and the intervals against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from domainkit import score
from domainkit.score import Score, bits_per_byte, bootstrap, classification, per_label, relative_change

TEXTS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde"), st.sampled_from("xyz")), min_size=1, max_size=40
)


def test_bits_per_byte_is_a_ratio_of_sums_in_bits() -> None:
    found = bits_per_byte([8 * math.log(2), 2 * math.log(2)], [4, 16], seed=0)
    assert found.value == pytest.approx(10 / 20)  # not the mean of 2 and 0.125
    assert (found.low, found.high) == pytest.approx((0.125, 2.0))


def test_relative_change_is_paired_and_in_percent() -> None:
    base = [100.0, 1.0, 50.0, 7.0]
    found = relative_change([0.9 * value for value in base], base, [10, 20, 30, 40], seed=3)
    assert (found.value, found.low, found.high) == pytest.approx((-10, -10, -10))
    unpaired = bits_per_byte(base, [10, 20, 30, 40], seed=3)
    assert unpaired.high - unpaired.low > 1  # the documents differ; only pairing removes that


def test_columns_must_match() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        bits_per_byte([1.0, 2.0], [1], seed=0)
    with pytest.raises(ValueError, match="1 gold, 2 predicted"):
        classification(["a"], ["a", "b"], ["x"], seed=0)


def test_no_document_is_refused_and_one_says_nothing() -> None:
    with pytest.raises(ValueError, match="at least one document"):
        bits_per_byte([], [], seed=0)
    found = bits_per_byte([3.0], [2], seed=0)
    assert found.low == found.value == found.high


def test_a_document_without_bytes_does_not_spoil_the_interval() -> None:
    found = bits_per_byte([0.0, 8.0], [0, 4], seed=0)
    assert found.low == found.value == found.high == pytest.approx(2 / math.log(2))


def test_nan_stays_visible() -> None:
    assert math.isnan(bits_per_byte([float("nan"), 1.0], [1, 1], seed=0).value)


@settings(max_examples=40)
@given(TEXTS)
def test_classification_agrees_with_scikit_learn(texts: list[tuple[str, str, str]]) -> None:
    gold, predicted, groups = (list(column) for column in zip(*texts, strict=True))
    found = classification(gold, predicted, groups, seed=0)
    present = sorted(set(gold))
    expected = f1_score(gold, predicted, labels=present, average="macro", zero_division=0)
    assert found["macro_f1"].value == pytest.approx(expected)
    assert found["accuracy"].value == pytest.approx(accuracy_score(gold, predicted))
    for one in found.values():
        assert 0 <= one.low <= one.high <= 1 + 1e-12
    labels = sorted({*gold, *predicted})
    reference = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), reference, strict=True):
        assert [row[name] for row in per_label(gold, predicted).values()] == pytest.approx(list(column))


def test_every_resample_is_scored_like_a_test_set_of_its_own() -> None:
    """The vectorised bootstrap against one that repeats the documents and asks scikit-learn."""
    random = np.random.default_rng(5)
    gold = random.choice(list("aaabbc"), 60).tolist()
    predicted = [g if random.random() < 0.6 else str(random.choice(list("abcd"))) for g in gold]
    groups = [str(i // 3) for i in range(60)]
    drawn = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), 1000)[:200]
    slow = []
    for counts in drawn:
        index = [i for i in range(60) for _ in range(counts[i // 3])]
        truth, guess = [gold[i] for i in index], [predicted[i] for i in index]
        slow.append(f1_score(truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0))
    _, counts = score._counts(gold, predicted, groups)
    found = bootstrap(counts, score._macro_f1, seed=0, samples=200)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_texts_of_one_document_are_not_taken_for_independent() -> None:
    gold, predicted = ["a"] * 300, ["a"] * 150 + ["b"] * 150
    apart = classification(gold, predicted, [str(i) for i in range(300)], seed=0)["accuracy"]
    together = classification(gold, predicted, [str(i // 30) for i in range(300)], seed=0)["accuracy"]
    assert together.high - together.low > 2 * (apart.high - apart.low)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 10_000)), min_size=1, max_size=30),
    st.floats(0.1, 10),
    st.integers(0, 2**31),
)
def test_bits_per_byte_properties(documents: list[tuple[float, int]], factor: float, seed: int) -> None:
    nll, size = [d[0] for d in documents], [d[1] for d in documents]
    found = bits_per_byte(nll, size, seed=seed)
    rates = [n / s / math.log(2) for n, s in documents]
    assert min(rates) * (1 - 1e-9) <= found.low <= found.high <= max(rates) * (1 + 1e-9)
    assert found == bits_per_byte(nll, size, seed=seed)
    assert bits_per_byte(nll[::-1], size[::-1], seed=seed).value == pytest.approx(found.value)
    scaled = bits_per_byte([factor * n for n in nll], size, seed=seed)
    assert (scaled.low, scaled.high) == pytest.approx((factor * found.low, factor * found.high))


def test_blocks_only_save_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(1).random((50, 2))
    whole = bootstrap(counts, lambda s: s[:, 0] / s[:, 1], seed=9)
    monkeypatch.setattr(score, "BLOCK", 333)
    blocks = bootstrap(counts, lambda s: s[:, 0] / s[:, 1], seed=9)
    assert (blocks.value, blocks.low, blocks.high) == pytest.approx((whole.value, whole.low, whole.high))


def _covered(truth: float, found: Score) -> bool:
    return found.low <= truth <= found.high


def test_intervals_hold_the_truth_about_95_percent_of_the_time() -> None:
    random = np.random.default_rng(2024)
    bits, change, accuracy = [], [], []
    for trial in range(250):
        bytes_ = random.lognormal(6, 0.7, 80).astype(int) + 1
        base = bytes_ * random.normal(0.8, 0.15, 80)  # nats per byte, independent of the size: truth 0.8
        adapted = base * random.normal(0.9, 0.05, 80)
        ours, theirs, size = adapted.tolist(), base.tolist(), bytes_.tolist()
        bits.append(_covered(0.8 / math.log(2), bits_per_byte(theirs, size, seed=trial)))
        change.append(_covered(-10.0, relative_change(ours, theirs, size, seed=trial)))
        right = random.random((60, 5)) < random.beta(7, 3, (60, 1))  # 60 documents of 5 texts, truth 0.7
        guesses = ["a" if hit else "b" for hit in right.ravel()]
        groups = [str(i // 5) for i in range(300)]
        accuracy.append(_covered(0.7, classification(["a"] * 300, guesses, groups, seed=trial)["accuracy"]))
    for hits in (bits, change, accuracy):
        assert 0.90 <= np.mean(hits) <= 0.985
