"""One label per text, e.g. which regulation a paragraph belongs to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainkit.data.clean import clean, filter_table
from domainkit.data.mix import split
from domainkit.data.tokens import sequences
from domainkit.kinds import Answer, Corpus, Outcome, Portion, Prepared, Reader
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.top import Top
from domainkit.nets.heads import WideDeepClassifier
from domainkit.report import Table
from domainkit.score import classification, per_label
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens

CHECKED = 0.4  # documents below this in the order of `split`: the lowest 0.2 are test, the next 0.2 choose the weight


@dataclass(frozen=True)
class Settings:
    train_examples: int = field(default=1200, metadata={"min": 1})
    test_examples: int = field(default=600, metadata={"min": 1})
    max_tokens: int = field(default=96, metadata={"min": 2})  # of each text; the rest is not read
    passes: int = field(default=1, metadata={"min": 1})  # times every text is trained on per epoch


class Kind:
    """See `domainkit.kinds.Kind`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings

    def prepare(self, corpus: Corpus, base: Base) -> Prepared:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        kept = [e for source, found in corpus.examples.items() for e in clean(found, counts[source])]
        unlabelled = [e.id for e in kept if not e.label]
        if unlabelled:
            raise UserError(
                f"{len(unlabelled)} examples have no label, first {unlabelled[0]}",
                where=self.name,
                instead='a "label" in every line of --data',
            )
        learned, held = split(kept) if corpus.held_out else ([], kept)
        train = _sample(learned, self.settings.train_examples)
        test = _sample(held, self.settings.test_examples if corpus.held_out else len(held))
        labels = tuple(sorted({e.label for e in learned}))
        if corpus.held_out and len(labels) < 2:
            raise UserError(f"needs at least 2 labels to learn, found {list(labels)}", where=self.name)
        if not test:
            raise UserError("no labelled text is left to test on", where=self.name, instead="more documents")
        fitted, check = split(train, test=CHECKED)
        if not fitted:  # too few documents to keep one from training
            fitted, check = train, []
        return Prepared(
            self._encode(fitted, base, corpus) * self.settings.passes,
            self._encode(test, base, corpus),
            check=self._encode(check, base, corpus),
            labels=labels,
            labelled=self._encode(learned, base, corpus),
            tables=(filter_table(counts), _label_table(train, test)),
            rivals={"train": train, "all": learned, "test": test},
        )

    def _encode(self, examples: Sequence[Example], base: Base, corpus: Corpus) -> tuple[Tokens, ...]:
        """The first `max_tokens` of every example, in order."""
        context = min(self.settings.max_tokens, corpus.context)
        return tuple(next(sequences(e, base.tokenizer, base.prefix_id, context=context)) for e in examples)

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        head = WideDeepClassifier(base.width, len(prepared.labels), base.model.config.vocab_size)
        known = prepared.labelled
        if known:
            index = {label: i for i, label in enumerate(prepared.labels)}
            head.words.solve([s.ids for s in known], [index[s.label] for s in known], [s.group for s in known])
        return head

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        found = self._logprobs(top, batch)  # (sequences, labels)
        return F.nll_loss(found, _gold(batch, labels).to(found.device), reduction="sum")

    def terms(self, sequences: Iterable[Tokens]) -> int:
        return sum(1 for _ in sequences)

    def _head(self, top: Top) -> WideDeepClassifier:
        return cast(WideDeepClassifier, top.heads[self.name])

    def _logprobs(self, top: Top, batch: Batch) -> Tensor:
        texts = [s.ids for _, s in batch.placed]
        return self._head(top)(*batch.states(top.states(batch)), texts)

    @torch.no_grad()
    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        head = self._head(top)
        wide, deep, gold = [], [], []
        for batch in batches:
            parts = head.parts(*batch.states(top.states(batch)), [s.ids for _, s in batch.placed])
            wide.append(parts[0])
            deep.append(parts[1])
            gold.append(_gold(batch, labels).to(parts[0].device))
        head.settle(torch.cat(wide), torch.cat(deep), torch.cat(gold))

    @torch.no_grad()
    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> list[tuple[str, float]]:
        """The best label of each sequence and its probability."""
        best = self._logprobs(top, batch).exp().max(-1)
        return [(labels[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def answer(self, reader: Reader, portion: Portion) -> list[Answer]:
        """The label of each text, and the one that its words alone would give it."""
        top, labels = reader.top_of(self.name), reader.labels[self.name]
        told = reader.each(portion.sequences, lambda batch: self.predict(top, batch, labels))
        words = self._head(top).words([s.ids for s in portion.sequences]).argmax(-1).tolist()
        return [[label, labels[i]] for (label, _), i in zip(told, words, strict=True)]

    def score(self, reader: Reader, prepared: Prepared, answers: Sequence[Answer], seed: int) -> Outcome:
        predicted, words = (list(side) for side in zip(*answers, strict=True))
        gold, groups = [s.label for s in prepared.test], [s.group for s in prepared.test]
        weight = round(float(self._head(reader.top).weight), 3)
        baseline = {"words-alone": classification(gold, words, groups, seed=seed)}
        baseline |= {
            name: classification([e.label for e in test], guesses, [e.group or e.id for e in test], seed=seed)
            for name, test, guesses in _rivals(prepared)
        }
        scores = classification(gold, predicted, groups, seed=seed)
        told = "; ".join(f"{name} {values['macro_f1'].value:.3f}" for name, values in baseline.items())
        return Outcome(
            scores, per_label(gold, predicted), baseline,
            f"Macro F1 {scores['macro_f1'].value:.3f} on {len(gold)} held-out texts" + (f" ({told})." if told else "."),
            (Table("What counts", ("part", "weight"), (("words", 1.0), ("states", weight))),),
        )  # fmt: skip


def _gold(batch: Batch, labels: Sequence[str]) -> Tensor:
    index = {label: i for i, label in enumerate(labels)}
    return torch.tensor([index[s.label] for _, s in batch.placed])


def _sample(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples in an order that only their text decides."""
    return sorted(examples, key=lambda e: sha256(e.text.encode()).digest())[:count]


def _rivals(prepared: Prepared) -> Iterable[tuple[str, Sequence[Example], list[str]]]:
    """TF-IDF with logistic regression, fitted on the same training texts and on all there are."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    test: Sequence[Example] = prepared.rivals.get("test", ())  # type: ignore[assignment]
    for part, name in (("train", "tfidf-logistic"), ("all", "tfidf-logistic-all-data")):
        train: Sequence[Example] = prepared.rivals.get(part, ())  # type: ignore[assignment]
        if train and test:
            model = make_pipeline(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                LogisticRegression(C=30.0, max_iter=1000, class_weight="balanced"),
            )
            model.fit([e.text for e in train], [e.label for e in train])
            yield name, test, list(model.predict([e.text for e in test]))


def _label_table(train: Sequence[Example], test: Sequence[Example]) -> Table:
    learned, held = Counter(e.label for e in train), Counter(e.label for e in test)
    rows = tuple((label, learned[label], held[label]) for label in sorted(learned | held))
    return Table("Texts by label", ("label", "train", "test"), rows)
