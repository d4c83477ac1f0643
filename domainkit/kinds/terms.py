"""Which English term does a Chinese one mean? Answered by the rows that the two have learned, no sentence read.

A query is a stretch of real text, a line break, the Chinese form and " =". The answer is the glossary's English term,
which is one token; every English term of the glossary is a candidate. Nothing is trained: a map from Chinese rows to
English ones is solved from most of the glossary. The other terms it never learns, so the report tells what it can
look up (known terms, wherever they occur) from what it infers (terms never learned). Beside it stands the language
model, whose next token would be the answer if it knew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, cast

import torch
from torch import Tensor, nn

from domainkit.data.clean import clean, filter_table
from domainkit.data.mix import split
from domainkit.glossary import Glossary, is_chinese
from domainkit.kinds import Answer, Corpus, Outcome, Portion, Prepared, Reader
from domainkit.matcher import Matcher
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.top import Top
from domainkit.nets.translate import Translator
from domainkit.report import Table
from domainkit.score import Score, classification
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens

CONTEXTS, TERMS = "contexts", "terms"  # the two held-out slices
CANDIDATES = 20  # the right term and those whose names are most like it


@dataclass(frozen=True)
class Settings:
    test_queries: int = field(default=300, metadata={"min": 1})  # of each slice
    held_terms: float = field(default=0.1, metadata={"min": 0.0, "max": 0.9})  # share of terms never learned
    window: int = field(default=16, metadata={"min": 0})  # characters of the sentence kept on either side


@dataclass(frozen=True)
class Query:
    """A question about one occurrence of a term."""

    text: str  # where it stands, one line
    form: str  # as it stands there
    term: str = ""  # id of the one that is meant
    group: str = ""

    @property
    def asks(self) -> str:
        """The question in full."""
        return f"{self.text}\n{self.form} ="


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
        most = self.settings.test_queries if corpus.held_out else len(unseen)
        read = {q.asks for q in seen}  # one sentence may stand in many documents
        contexts = _spread((q for q in unseen if q.term in known and q.asks not in read), most)
        terms = _spread((q for q in [*unseen, *seen] if q.term not in known), most)
        test = encode(contexts, base, corpus.context, CONTEXTS) + encode(terms, base, corpus.context, TERMS)
        if not test or (corpus.held_out and not known):
            raise UserError("too few Chinese terms of the glossary in the text", where=self.name,
                            instead="Chinese documents that use them")  # fmt: skip
        forms = _forms(corpus.glossary, known, base)
        facts = (("candidates", len(answers)), ("terms learned", len(known)), ("their Chinese forms", len(forms)))
        return Prepared(
            (), test, labels=tuple(sorted(answers)), labelled=forms, rivals={"answers": answers},
            tables=(filter_table(counts), Table("Terms", ("what", "count"), facts)),
        )  # fmt: skip

    def _queries(self, example: Example, matcher: Matcher, answers: Mapping[str, int]) -> Iterator[Query]:
        """A query for every Chinese term in the example, unless its sentence gives the answer away."""
        size, text = self.settings.window, example.text
        for match in matcher.find(text):
            if is_chinese(match.form) and match.term.id in answers:
                before = text[max(0, match.start - size) : match.start].rpartition("\n")[2]
                after = text[match.end : match.end + size].partition("\n")[0]
                if match.term.en.lower() not in f"{before}\n{after}".lower():
                    line = f"{before}{match.form}{after}"
                    yield Query(line, match.form, match.term.id, example.group or example.id)

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        answers = cast(Mapping[str, int], prepared.rivals.get("answers", {}))  # none: `restore` brings them
        known, (newline, closing) = {s.label for s in prepared.labelled}, _marks(base)
        ids = [answers.get(term, 0) for term in prepared.labels]
        head = Translator(ids, [t in known for t in prepared.labels], base.width, newline=newline, closing=len(closing))
        if known:
            index = {term: i for i, term in enumerate(prepared.labels)}
            weight = base.input_rows
            rows = _means(weight, [s.ids[1:] for s in prepared.labelled])
            answer = torch.tensor([index[s.label] for s in prepared.labelled])
            head.solve(rows, answer, weight[ids])
        return head

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        raise NotImplementedError("nothing is trained: `prepare` gives no training sequences")

    def terms(self, sequences: Iterable[Tokens]) -> int:
        return 0  # the loss has none

    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        pass  # nothing to choose

    def _head(self, top: Top) -> Translator:
        return cast(Translator, top.heads[self.name])

    def _by_rows(self, top: Top, batch: Batch) -> Tensor:
        """Score of every candidate by the rows: (queries, candidates)."""
        head = self._head(top)
        weight = top.input_weight
        rows = _means(weight, [head.asked(s.ids) for _, s in batch.placed])
        return head(rows, weight[head.ids])

    def _by_next_token(self, top: Top, batch: Batch) -> Tensor:
        """Score of every candidate as the model's own next token: (queries, candidates)."""
        last = torch.tensor([start + len(s.ids) - 1 for start, s in batch.placed])
        states = top.states(batch)
        return states[last.to(states.device)] @ top.output_weight[self._head(top).ids].to(states.dtype).T

    @torch.no_grad()
    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> list[tuple[str, float]]:
        """The best term of each query and its cosine, -1 to 1, with what the form's row is taken to."""
        scores = self._by_rows(top, batch)
        best = scores.argmax(-1)
        cosines = self._head(top).cosines(scores).gather(1, best[:, None])[:, 0]
        return [(labels[i], cosine) for i, cosine in zip(best.tolist(), cosines.tolist(), strict=True)]

    @torch.no_grad()
    def answer(self, reader: Reader, portion: Portion) -> list[Answer]:
        """Whether the right term comes first, among all candidates and among those most alike: by the rows, by the
        model's next token, and by the base's. Nothing of a term that the run does not know."""
        top, labels = reader.top_of(self.name), reader.labels[self.name]
        known = frozenset(labels)
        asked = [s for s in portion.sequences if s.label in known]
        alike = _alike(labels, {s.label for s in asked})
        ours = reader.each(asked, lambda batch: _right(self._by_rows(top, batch), batch, labels, alike))

        def next_token(batch: Batch) -> list[list[bool]]:
            return _right(self._by_next_token(top, batch), batch, labels, alike)

        adapted = reader.each(asked, next_token)
        with top.untouched():
            base = reader.each(asked, next_token)
        found = zip(ours, adapted, base, strict=True)
        return [list(next(found)) if s.label in known else [] for s in portion.sequences]

    def score(self, reader: Reader, prepared: Prepared, answers: Sequence[Answer], seed: int) -> Outcome:
        known = dict(zip(prepared.labels, self._head(reader.top).known.tolist(), strict=True))
        asked = [(s, answer) for s, answer in zip(prepared.test, answers, strict=True) if answer]
        if not asked:  # the glossary has changed since
            raise UserError("no term in the text is one that the run knows", where=self.name)

        def scored(way: int) -> dict[str, Score]:
            slices = [CONTEXTS if known[s.label] else TERMS for s, _ in asked]
            judged = [Judged(slice, s.group, tuple(a[way])) for slice, (s, a) in zip(slices, asked, strict=True)]
            return _scores(judged, seed)

        scores, rivals = scored(0), {"base": scored(2), "next token": scored(1)}
        told = ", ".join(f"{name} {score.value:.1%}" for name, score in scores.items())
        return Outcome(
            scores, {}, rivals, f"Found from the terms' learned rows alone, the right English term comes first: {told}."
        )


@dataclass(frozen=True)
class Judged:
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
    for query in sorted({q.asks: q for q in queries}.values(), key=lambda q: _place(q.asks)):
        by_term[query.term].append(query)
    turns = [(turn, _place(term), q) for term, found in by_term.items() for turn, q in enumerate(found)]
    return [q for _, _, q in sorted(turns, key=lambda t: t[:2])[:count]]


def _forms(glossary: Glossary, known: Collection[str], base: Base) -> tuple[Tokens, ...]:
    """Every Chinese form of the known terms as the tokens it has when it stands alone."""
    pairs = [(form, term.id) for term in glossary.terms if term.id in known for form in term.forms if is_chinese(form)]
    return tuple(
        Tokens((base.prefix_id, *_ids(form, base)), len(form.encode()), term, label=term) for form, term in pairs
    )


def encode(queries: Iterable[Query], base: Base, context: int, slice: str = "") -> tuple[Tokens, ...]:
    """Queries of at most `context` tokens, the prefix among them: a text too long loses its start, a form nothing.

    A query whose form alone takes more is left out. Text, line break, form and closing are encoded apart, so that the
    form has the tokens it learned with.
    """
    newline, closing = _marks(base)
    found = []
    for q in queries:
        end = (newline, *_ids(q.form, base), *closing)
        room = context - 1 - len(end)
        if room >= 0:
            text = _ids(q.text, base)
            ids = (base.prefix_id, *text[max(0, len(text) - room) :], *end)
            found.append(Tokens(ids, len(q.asks.encode()), q.group, slice, q.term))
    return tuple(found)


def _marks(base: Base) -> tuple[int, list[int]]:
    """The token of a line break, and those that follow the form."""
    return _ids("\n", base)[-1], _ids(" =", base)


def _ids(text: str, base: Base) -> list[int]:
    return list(base.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _means(weight: Tensor, forms: Iterable[Sequence[int]]) -> Tensor:
    """The mean of the rows of each form's tokens: (forms, width)."""
    return torch.stack([weight[list(ids)].float().mean(0) for ids in forms])


def _alike(labels: Sequence[str], asked: Iterable[str]) -> dict[str, list[int]]:
    """For each term asked, the indices of the CANDIDATES labels spelled most like it, itself among them."""
    vectors = _spelled(tuple(labels))
    index = {label: i for i, label in enumerate(labels)}
    found = {}
    for label in asked:
        near = (vectors[index[label]] @ vectors.T).toarray()[0]
        near[index[label]] = 2.0  # above every cosine
        found[label] = sorted(near.argsort(kind="stable")[::-1][:CANDIDATES].tolist())
    return found


@lru_cache(maxsize=1)
def _spelled(labels: tuple[str, ...]) -> Any:
    """How each label is spelled: a sparse row of its letters' n-grams, of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(labels)


def _right(logits: Tensor, batch: Batch, labels: Sequence[str], alike: Mapping[str, list[int]]) -> list[list[bool]]:
    """Whether each query's term has the highest score of all candidates, and of those most like it."""
    found = []
    for (_, query), row in zip(batch.placed, logits, strict=True):
        near = alike[query.label]
        best = (int(row.argmax()), near[int(row[near].argmax())])
        found.append([labels[i] == query.label for i in best])
    return found


def _scores(answers: Sequence[Judged], seed: int) -> dict[str, Score]:
    """Share of right answers by slice, among all candidates and among those most alike."""
    scores = {}
    for slice in sorted({a.slice for a in answers}):
        own = [a for a in answers if a.slice == slice]
        groups = [a.group for a in own]
        for column, name in enumerate(("top1_all", f"top1_{CANDIDATES}")):
            found = ["right" if a.right[column] else "wrong" for a in own]
            scores[f"{name}/{slice}"] = classification(["right"] * len(own), found, groups, seed=seed)["accuracy"]
    return scores
