"""Language adaptation: the next token of domain text, mixed with general text so that nothing is forgotten."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import groupby

import torch
from torch import Tensor, nn

from domainkit.data.clean import clean, filter_table
from domainkit.data.mix import mixture, split
from domainkit.data.tokens import sequences
from domainkit.kinds import Answer, Corpus, Outcome, Portion, Prepared, Reader
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.top import Top
from domainkit.nets.loss import head_cross_entropy, token_logprobs
from domainkit.report import Table
from domainkit.score import bits_per_byte, relative_change
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens


@dataclass(frozen=True)
class Settings:
    tokens: int = field(default=60_000, metadata={"min": 1})  # trained tokens per epoch
    share: float = field(default=0.3, metadata={"min": 0.0, "max": 1.0})  # of them: domain text
    test_tokens: int = field(default=8_000, metadata={"min": 1})  # held-out tokens per slice


class Kind:
    """See `domainkit.kinds.Kind`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings

    def prepare(self, corpus: Corpus, base: Base) -> Prepared:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        train: dict[str, list[Tokens]] = defaultdict(list)
        test: dict[str, list[Tokens]] = defaultdict(list)
        for source, examples in corpus.examples.items():
            kept = _joined(clean(examples, counts[source]))
            learned, held = split(kept) if corpus.held_out else ([], kept)
            for part, into in ((learned, train), (held, test)):
                # Held-out text is cut by the base's own tokens, so that the base has read as much before every word.
                cutter = base.plain or base.tokenizer if into is test else base.tokenizer
                for example in part:
                    name = _slice(corpus, source, example)
                    into[name] += sequences(example, cutter, base.prefix_id, context=corpus.context, slice=name)
        if corpus.held_out and not (train and test):
            side = "learn from" if not train else "test on"
            raise UserError(f"no text is left to {side}", where=self.name, instead="more or cleaner documents")
        tables: tuple[Table, ...] = (filter_table(counts),)
        chosen: tuple[Tokens, ...] = ()
        if corpus.held_out:
            chosen, table = self._mix(train, corpus)
            tables += (table,)
        tested = tuple(s for name in sorted(test) for s in self._sample(test[name], corpus))
        if not tested:
            raise UserError("no text is left after cleaning", where=self.name, instead="more or cleaner documents")
        own = () if base.plain is None else tested
        return Prepared(chosen, tuple(spoken(s, base) for s in tested), plain=own, tables=tables)

    def _mix(self, train: Mapping[str, Sequence[Tokens]], corpus: Corpus) -> tuple[tuple[Tokens, ...], Table]:
        domain = [name for name in train if not name.startswith("general-")]
        general = [name for name in train if name.startswith("general-")]
        share = self.settings.share if general and domain else float(bool(domain))
        shares = {name: share / len(domain) for name in domain}
        shares |= {name: (1 - share) / len(general) for name in general}
        shares = {name: value for name, value in shares.items() if value > 0}
        lengths = {name: [len(s.ids) for s in train[name]] for name in shares}
        mixed = mixture(lengths, shares, self.settings.tokens, corpus.seed)
        asked = [name for name in domain or general if name in shares]
        if asked and not any(mixed.tokens_per_slice[name] for name in asked):
            least = min(min(lengths[name]) / shares[name] for name in asked)
            raise UserError(
                f"{self.settings.tokens:,} tokens per epoch have no room for one sequence of {' or '.join(asked)}",
                where=self.name,
                instead=f"--set {self.name}.tokens={math.ceil(least)} or more, or a shorter --set context=…",
            )
        total = sum(mixed.tokens_per_slice.values())
        rows = [
            (name, f"{shares[name]:.1%}", f"{mixed.tokens_per_slice[name] / total:.1%}",
             mixed.tokens_per_slice[name], round(mixed.repeats_per_slice[name], 2))
            for name in shares
        ]  # fmt: skip
        columns = ("slice", "asked", "got", "tokens per epoch", "passes over its text")
        return tuple(train[name][i] for name, i in mixed.order), Table("Mixture", columns, tuple(rows))

    def _sample(self, found: Sequence[Tokens], corpus: Corpus) -> list[Tokens]:
        """Test sequences of a slice, in an order that only their content decides, up to `test_tokens`."""
        budget = self.settings.test_tokens if corpus.held_out else sum(len(s.ids) for s in found)
        taken: list[Tokens] = []
        for s in sorted(found, key=lambda s: sha256(s.digest.encode()).digest()):
            if budget <= 0:
                break
            taken.append(s)
            budget -= len(s.ids)
        return taken

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        return None

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        states, _ = batch.states(top.states(batch), drop_last=True)
        target = _targets(batch).to(states.device)
        return head_cross_entropy(states, top.output_weight, target)

    def terms(self, sequences: Iterable[Tokens]) -> int:
        return sum(len(s.ids) - 1 for s in sequences)

    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        pass  # nothing to choose

    @torch.no_grad()
    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> list[float]:
        """Negative log-likelihood of each sequence, nats."""
        return _surprise(top, batch, top.output_weight)

    @torch.no_grad()
    def base(self, top: Top, batch: Batch) -> list[float]:
        """`predict` of the base as it came: no LoRA, and no glossary token that could be the next."""
        with top.untouched():
            return _surprise(top, batch, top.own_weight)

    def answer(self, reader: Reader, portion: Portion) -> list[Answer]:
        """Negative log-likelihood of each sequence, nats: adapted, and by the base."""
        top = reader.top_of(self.name)
        ours = reader.each(portion.sequences, lambda batch: self.predict(top, batch, ()))
        theirs = reader.each(portion.plain or portion.sequences, lambda batch: self.base(top, batch))
        return [list(pair) for pair in zip(ours, theirs, strict=True)]

    def score(self, reader: Reader, prepared: Prepared, answers: Sequence[Answer], seed: int) -> Outcome:
        nats = list(zip(*answers, strict=True))
        ours = list(zip(prepared.test, nats[0], strict=True))
        theirs = list(zip(prepared.plain or prepared.test, nats[1], strict=True))
        scores, baseline = {}, {}
        rows: list[tuple[str | int | float, ...]] = []
        for name in sorted({s.slice for s, _ in ours}):
            adapted, base = (_by_document(row for row in side if row[0].slice == name) for side in (ours, theirs))
            size = list(_by_document((s, s.bytes) for s, _ in ours if s.slice == name).values())
            a, b = list(adapted.values()), [base[group] for group in adapted]
            key = f"bits_per_byte/{name}"
            scores[key] = bits_per_byte(a, size, seed=seed)
            baseline[key] = bits_per_byte(b, size, seed=seed)
            change = relative_change(a, b, size, seed=seed)
            scores[f"change_percent/{name}"] = change
            rows.append((name, len(size), sum(size), change.value, change.low, change.high))
        columns = ("slice", "documents", "bytes", "change %", "low", "high")
        told = ", ".join(f"{row[0]} {row[3]:+.1f} %" for row in rows)
        return Outcome(
            scores, {}, {"base": baseline},
            f"Bits per byte on held-out text, adapted against base: {told} (negative is better).",
            (Table("Held-out text", columns, tuple(rows)),),
        )  # fmt: skip


def _slice(corpus: Corpus, source: str, example: Example) -> str:
    part = corpus.domain if corpus.parts[source] == "domain" else "general"
    return f"{part}-{example.language or 'und'}"  # "und": undetermined, ISO 639-2


def _joined(examples: Iterable[Example]) -> list[Example]:
    """Consecutive examples of one group (the paragraphs of a document) as one document."""
    runs = groupby(examples, key=lambda e: (e.group or e.id, e.language))
    return [replace(first, text="\n".join([first.text, *(e.text for e in rest)])) for _, (first, *rest) in runs]


def _targets(batch: Batch) -> Tensor:
    return torch.cat([torch.tensor(s.ids[1:]) for _, s in batch.placed])


def spoken(s: Tokens, base: Base) -> Tokens:
    """A sequence of the base's own tokens in those of the glossary, if there are any: the same text, no more tokens."""
    if base.plain is None:
        return s
    text = base.plain.decode(list(s.ids[1:]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    ids = base.tokenizer.encode(str(text), add_special_tokens=False, verbose=False)
    return replace(s, ids=(base.prefix_id, *ids))


def _surprise(top: Top, batch: Batch, weight: Tensor) -> list[float]:
    """Negative log-likelihood of each sequence, nats, through an output head."""
    states, owner = batch.states(top.states(batch), drop_last=True)
    logprobs = token_logprobs(states, weight, _targets(batch).to(states.device))
    total = torch.zeros(len(batch.placed), dtype=torch.float64, device=logprobs.device)
    return (-total.index_add(0, owner, logprobs.double())).tolist()


def _by_document(rows: Iterable[tuple[Tokens, float]]) -> dict[str, float]:
    """Document → the sum of its values."""
    documents: dict[str, float] = defaultdict(float)
    for s, value in rows:
        documents[s.group] += value
    return documents
