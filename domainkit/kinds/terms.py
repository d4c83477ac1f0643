"""Which English term does a Chinese one mean in its sentence? Asked of the model's own next token, no head learned.

A query is a stretch of real text, a line break, the Chinese form and " =". The answer is the glossary's English term,
which is one token; every English term of the glossary is a candidate. Some terms are never asked in training, so the
report tells learning (known terms in sentences never seen) from generalisation (terms never asked).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from domainkit.data.clean import clean, filter_table
from domainkit.data.mix import split
from domainkit.glossary import Glossary, is_chinese
from domainkit.kinds import Batched, Corpus, Outcome, Prepared
from domainkit.matcher import Matcher
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.top import Top
from domainkit.nets.heads import Answers
from domainkit.report import Table
from domainkit.score import Score, classification
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens

CONTEXTS, TERMS = "contexts", "terms"  # the two held-out slices
CANDIDATES = 20  # the right term and those whose names are most like it


@dataclass(frozen=True)
class Settings:
    train_queries: int = field(default=1500, metadata={"min": 1})
    test_queries: int = field(default=300, metadata={"min": 1})  # of each slice
    held_terms: float = field(default=0.1, metadata={"min": 0.0, "max": 0.9})  # share of terms never asked in training
    window: int = field(default=16, metadata={"min": 0})  # characters of the sentence kept on either side


@dataclass(frozen=True)
class Query:
    """A question about one occurrence of a term."""

    text: str
    term: str  # id of the one that is meant
    group: str


class Kind:
    """See `domainkit.kinds.Kind`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings

    def prepare(self, corpus: Corpus, base: Base) -> Prepared:
        if not (corpus.glossary and base.added):
            raise UserError("asks for terms of a glossary, but none has a token of its own here", where=self.name,
                            instead="a glossary in domain.toml, or leave the task out with --task")  # fmt: skip
        answers, matcher = _answers(corpus.glossary, base), Matcher(corpus.glossary)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        kept = [e for source, found in corpus.examples.items() for e in clean(found, counts[source])]
        learned, held = split(kept) if corpus.held_out else ([], kept)
        seen, unseen = ([q for e in side for q in self._queries(e, matcher, answers)] for side in (learned, held))
        known = {term for term in answers if _place(term) >= self.settings.held_terms}
        train = _spread((q for q in seen if q.term in known), self.settings.train_queries)
        most = self.settings.test_queries if corpus.held_out else len(unseen)
        asked = {q.term for q in train} if corpus.held_out else known  # a given file: `evaluate` knows what was asked
        read = {q.text for q in seen}  # one sentence may stand in many documents
        contexts = _spread((q for q in unseen if q.term in asked and q.text not in read), most)
        terms = _spread((q for q in [*unseen, *seen] if q.term not in known), most)
        if not (contexts or terms) or (corpus.held_out and not train):
            raise UserError("too few Chinese terms of the glossary in the text", where=self.name,
                            instead="Chinese documents that use them")  # fmt: skip
        facts = (("candidates", len(answers)), ("terms asked in training", len(asked)), ("queries", len(train)))
        return Prepared(
            _encode(train, base, corpus.context),
            _encode(contexts, base, corpus.context, CONTEXTS) + _encode(terms, base, corpus.context, TERMS),
            labels=tuple(sorted(answers)), rivals={"answers": answers},
            tables=(filter_table(counts), Table("Terms", ("what", "count"), facts if train else facts[:1])),
        )  # fmt: skip

    def _queries(self, example: Example, matcher: Matcher, answers: Mapping[str, int]) -> Iterator[Query]:
        """A query for every Chinese term in the example, unless its sentence gives the answer away."""
        size, text = self.settings.window, example.text
        for match in matcher.find(text):
            if is_chinese(match.form) and match.term.id in answers:
                before = text[max(0, match.start - size) : match.start].rpartition("\n")[2]
                after = text[match.end : match.end + size].partition("\n")[0]
                if match.term.en.lower() not in f"{before}\n{after}".lower():
                    asks = f"{before}{match.form}{after}\n{match.form} ="
                    yield Query(asks, match.term.id, example.group or example.id)

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        answers = cast(Mapping[str, int], prepared.rivals.get("answers", {}))  # none: `restore` brings them
        known = {s.label for s in prepared.train}
        return Answers([answers.get(t, 0) for t in prepared.labels], [t in known for t in prepared.labels])

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        logits = self._logits(top, batch).masked_fill(~self._head(top).known, float("-inf"))
        gold = torch.tensor([labels.index(s.label) for _, s in batch.placed])
        return cross_entropy(logits, gold.to(logits.device), reduction="sum")

    def terms(self, sequences: Iterable[Tokens]) -> int:
        return sum(1 for _ in sequences)

    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        pass  # nothing to choose

    def _head(self, top: Top) -> Answers:
        return cast(Answers, top.heads[self.name])

    def _logits(self, top: Top, batch: Batch) -> Tensor:
        """Score of every candidate as the next token: (queries, candidates)."""
        last = torch.tensor([start + len(s.ids) - 1 for start, s in batch.placed])
        states = top.states(batch)
        return self._head(top)(states[last.to(states.device)], top.output_weight)

    @torch.no_grad()
    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> list[tuple[str, float]]:
        """The best term of each query and its probability among all candidates."""
        best = self._logits(top, batch).softmax(-1).max(-1)
        return [(labels[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @torch.no_grad()
    def evaluate(self, top: Top, batched: Batched, prepared: Prepared, seed: int) -> Outcome:
        known = dict(zip(prepared.labels, self._head(top).known.tolist(), strict=True))
        alike = _alike(prepared.labels, {s.label for s in prepared.test} & known.keys())
        ours, theirs = list[Answer](), list[Answer]()
        for batch in batched(prepared.test):
            ours += _judged(self._logits(top, batch), batch, known, alike)
            with top.untouched():
                theirs += _judged(self._logits(top, batch), batch, known, alike)
        if not ours:  # the glossary has changed since
            raise UserError("no term in the text is one that the run knows", where=self.name)
        scores = _scores(ours, seed)
        told = ", ".join(f"{name} {score.value:.1%}" for name, score in scores.items())
        return Outcome(scores, {}, {"base": _scores(theirs, seed)}, f"The right English term comes first: {told}.")


@dataclass(frozen=True)
class Answer:
    """Whether the right term came first, among all candidates and among those most alike."""

    slice: str
    group: str
    right: tuple[bool, ...]


def _answers(glossary: Glossary, base: Base) -> dict[str, int]:
    """Term → token id of its English form, for the terms that have one and share it with no other."""
    encoded = {t.id: base.tokenizer.encode(f" {t.en}", add_special_tokens=False) for t in glossary.terms}
    taken = Counter(ids[0] for ids in encoded.values() if len(ids) == 1)
    return {term: ids[0] for term, ids in encoded.items() if len(ids) == 1 and taken[ids[0]] == 1}


def _place(text: str) -> float:
    """Where a text falls between 0 and 1, by nothing but itself."""
    return int.from_bytes(sha256(text.encode()).digest()[:8]) / 2**64


def _spread(queries: Iterable[Query], count: int) -> list[Query]:
    """`count` different queries: each term once before any twice, in an order that only the content decides."""
    by_term: dict[str, list[Query]] = defaultdict(list)
    for query in sorted({q.text: q for q in queries}.values(), key=lambda q: _place(q.text)):
        by_term[query.term].append(query)
    turns = [(turn, _place(term), q) for term, found in by_term.items() for turn, q in enumerate(found)]
    return [q for _, _, q in sorted(turns, key=lambda t: t[:2])[:count]]


def _encode(queries: Sequence[Query], base: Base, context: int, slice: str = "") -> tuple[Tokens, ...]:
    """The last `context` tokens of each query, the prefix among them: what is too long loses its start."""
    encoded = (base.tokenizer.encode(q.text, add_special_tokens=False, verbose=False) for q in queries)
    return tuple(
        Tokens((base.prefix_id, *ids[1 - context :]), len(q.text.encode()), q.group, slice, q.term)
        for q, ids in zip(queries, encoded, strict=True)
    )


def _alike(labels: Sequence[str], asked: Iterable[str]) -> dict[str, list[int]]:
    """For each term asked, the indices of the CANDIDATES labels spelled most like it, itself among them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(labels)
    index = {label: i for i, label in enumerate(labels)}
    found = {}
    for label in asked:
        near = (vectors[index[label]] @ vectors.T).toarray()[0]
        near[index[label]] = 2.0  # above every cosine
        found[label] = sorted(near.argsort(kind="stable")[::-1][:CANDIDATES].tolist())
    return found


def _judged(logits: Tensor, batch: Batch, known: Mapping[str, bool], alike: Mapping[str, list[int]]) -> list[Answer]:
    """The queries whose term is a candidate of the run; the slice is by what the run was really asked."""
    labels, found = list(known), []
    for (_, query), row in zip(batch.placed, logits, strict=True):
        if query.label in known:
            near = alike[query.label]
            best = (int(row.argmax()), near[int(row[near].argmax())])
            right = tuple(labels[i] == query.label for i in best)
            found.append(Answer(CONTEXTS if known[query.label] else TERMS, query.group, right))
    return found


def _scores(answers: Sequence[Answer], seed: int) -> dict[str, Score]:
    """Share of right answers by slice, among all candidates and among those most alike."""
    scores = {}
    for slice in sorted({a.slice for a in answers}):
        own = [a for a in answers if a.slice == slice]
        groups = [a.group for a in own]
        for column, name in enumerate(("top1_all", f"top1_{CANDIDATES}")):
            found = ["right" if a.right[column] else "wrong" for a in own]
            scores[f"{name}/{slice}"] = classification(["right"] * len(own), found, groups, seed=seed)["accuracy"]
    return scores
