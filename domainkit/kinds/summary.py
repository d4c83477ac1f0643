"""Summaries: a title from an abstract, a note from a dialogue, written after the text in one line.

The model reads the text, a cue, then writes; of a training text only the summary's tokens are learned. With a concept
graph a summary can be kept from naming a concept that its text does not support, see `constrain`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn

from domainkit.conceptscore import by_document, concept_scores, summary_passages
from domainkit.constrain import Naming
from domainkit.data.pubtator import untitled
from domainkit.graph import ConceptGraph
from domainkit.kinds import Answer, Corpus, Outcome, Portion, Prepared, Reader
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.decode import write
from domainkit.model.top import Top
from domainkit.nets.loss import head_cross_entropy, token_logprobs
from domainkit.report import Table
from domainkit.score import Score, bootstrap
from domainkit.spanscore import summary_scores
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens

FREE, BOUND, BASE = "without the constraint", "with the constraint", "base"
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\s\da-z])")  # where one ends and another begins


@dataclass(frozen=True)
class Settings:
    cue: str = "Summary:"  # stands after the text; what follows is the summary
    constrain: bool = False  # keep summaries from naming concepts that the text does not support
    labels: tuple[str, ...] = ()  # entity types whose concepts' names are looked at; none: nothing is
    max_tokens: int = field(default=64, metadata={"min": 1})  # of a summary; what is longer is cut
    train_documents: int = field(default=300, metadata={"min": 1})
    test_documents: int = field(default=100, metadata={"min": 1})


class Kind:
    """See `domainkit.kinds.Kind`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        if settings.constrain and not settings.labels:
            raise UserError("the constraint needs to know the labels", where=name, instead='labels = ["Disease", …]')

    def prepare(self, corpus: Corpus, base: Base) -> Prepared:
        if self.settings.constrain and corpus.graph is None:
            raise UserError("the constraint needs a concept graph", where=self.name,
                            instead='graph = "NAME" in domain.toml, or constrain = false')  # fmt: skip
        learned, held = ([_asked(e) for e in side] for side in corpus.sides())
        learned = _sample(learned, self.settings.train_documents)
        held = _sample(held, self.settings.test_documents if corpus.held_out else len(held))
        if not held or (corpus.held_out and not learned):
            raise UserError("no document with a summary is left to " + ("learn from" if held else "test on"),
                            where=self.name, instead="documents with a text and its summary")  # fmt: skip
        train, test = (tuple(self._sequence(e, base, corpus.context) for e in side) for side in (learned, held))
        rows = tuple(
            (name, len(side), round(self.terms(side) / len(side), 1))
            for name, side in (("learned from", train), ("held out", test))
            if side
        )
        table = Table("Documents with a summary", ("documents", "count", "tokens of a summary"), rows)
        return Prepared(train, test, gold=tuple(held), tables=(table,))

    def _limit(self, context: int) -> int:
        """Tokens of a summary at most, its end included."""
        return min(self.settings.max_tokens, context // 2)

    def _prompt(self, example: Example, base: Base, context: int) -> tuple[int, ...]:
        """The prefix token, the text, or as much of its beginning as leaves room for a summary, and the cue."""
        text, cue = (_ids(base, part) for part in (example.text, f"\n\n{self.settings.cue}"))
        room = max(1, context - self._limit(context) - len(cue) - 1)
        return (base.prefix_id, *text[:room], *cue)

    def _sequence(self, example: Example, base: Base, context: int) -> Tokens:
        prompt, limit = self._prompt(example, base, context), self._limit(context)
        end = base.tokenizer.eos_token_id
        told = [*_ids(base, f" {example.summary}"), base.prefix_id if end is None else int(end)][:limit]
        size = len(f"{example.text}\n\n{self.settings.cue} {example.summary}".encode())
        tags = (0,) * len(prompt) + (1,) * len(told)
        return Tokens((*prompt, *told), size, example.group or example.id, tags=tags)

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        return None

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        states, target, _ = self._spots(top, batch)
        return head_cross_entropy(states, top.output_weight, target)

    def terms(self, sequences: Iterable[Tokens]) -> int:
        return sum(sum(s.tags) for s in sequences)

    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        pass  # nothing to choose

    def _spots(self, top: Top, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of every token of every summary: the state that it is predicted from, (tokens, width); its id; its owner."""
        spots = [
            (start + i - 1, s.ids[i], owner)
            for owner, (start, s) in enumerate(batch.placed)
            for i, tag in enumerate(s.tags)
            if tag
        ]
        flat = top.states(batch)
        index, target, owners = torch.tensor(spots, device=flat.device).T
        return flat[index], target.contiguous(), owners

    @torch.no_grad()
    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> list[float]:
        """Negative log-likelihood of each summary, nats."""
        states, target, owner = self._spots(top, batch)
        logprobs = token_logprobs(states, top.output_weight, target)
        total = torch.zeros(len(batch.placed), dtype=torch.float64, device=logprobs.device)
        return (-total.index_add(0, owner, logprobs.double())).tolist()

    def annotate(self, reader: Reader, examples: Sequence[Example]) -> list[Example]:
        """The documents with a summary each, under the constraint if it is set and the run has a graph.

        Of a text that begins with its summary, as PubTator's with their title, the rest is summarised. A blank text
        has an empty summary.
        """
        found = self._written(reader, [_asked(e) for e in examples if e.text.strip()])
        naming = self._naming(reader.graph)
        if self.settings.constrain and naming:
            found = self._bound(reader, found, naming)
        told = iter(found)
        return [replace(e, summary=next(told).summary if e.text.strip() else "") for e in examples]

    def _naming(self, graph: ConceptGraph | None) -> Naming | None:
        return Naming.of(graph, tuple(sorted(set(self.settings.labels)))) if graph and self.settings.labels else None

    def _written(self, reader: Reader, examples: Sequence[Example], rules: Sequence[Rule] = ()) -> list[Example]:
        """The documents with the summaries that the model gives, under rules if there are any (one per document)."""
        prompts = [self._prompt(e, reader.base, reader.context) for e in examples]
        top = reader.top_of(self.name)
        texts = write(reader.base, top, prompts, limit=self._limit(reader.context), unfit=rules)
        return [replace(e, summary=text) for e, text in zip(examples, texts, strict=True)]

    def _bound(self, reader: Reader, written: Sequence[Example], naming: Naming) -> list[Example]:
        """The documents, those whose summary invents a concept with another one, which does not."""
        rules = {i: partial(_ends, naming, naming.supported(e.text)) for i, e in enumerate(written)}
        again = [i for i, e in enumerate(written) if rules[i](e.summary)]
        made = dict(zip(again, self._written(reader, [written[i] for i in again], [rules[i] for i in again]),
                        strict=True))  # fmt: skip
        return [made.get(i, e) for i, e in enumerate(written)]

    def answer(self, reader: Reader, portion: Portion) -> list[Answer]:
        """Of each document: what is written, in how many seconds, by whom; nats of gold, adapted and by the base."""
        gold = portion.documents
        told, seconds = self._decodings(reader, gold, self._naming(reader.graph))
        top, sequences = reader.top_of(self.name), [self._sequence(e, reader.base, reader.context) for e in gold]
        nats = []
        for state in (nullcontext(), top.untouched()):
            with state:
                nats.append(reader.each(sequences, lambda batch: self.predict(top, batch, ())))
        return [
            {"told": {name: made[i].summary for name, made in told.items()}, "seconds": seconds,
             "nats": [side[i] for side in nats]}
            for i in range(len(gold))
        ]  # fmt: skip

    def score(self, reader: Reader, prepared: Prepared, answers: Sequence[Answer], seed: int) -> Outcome:
        gold, naming, written = prepared.gold, self._naming(reader.graph), tuple(answers[0]["told"])
        told = {
            name: [replace(e, summary=answer["told"][name]) for e, answer in zip(gold, answers, strict=True)]
            for name in written
        }
        seconds = {name: mean(answer["seconds"][name] for answer in answers) for name in written}
        perplexity = [_perplexity(prepared.test, [answer["nats"][side] for answer in answers], seed) for side in (0, 1)]
        told |= {"lead sentence": _sentences(gold, 0), "last sentence": _sentences(gold, -1)}
        found = {name: _scores(gold, made, naming, seed) for name, made in told.items()}
        table = _table(found, seconds, _scores(gold, gold, naming, seed))
        chosen = BOUND if naming and self.settings.constrain else FREE
        found |= {
            name: found[name] | {"perplexity": value} for name, value in zip((chosen, BASE), perplexity, strict=True)
        }
        return Outcome(
            found[chosen], {}, {name: values for name, values in found.items() if name != chosen},
            _sentence(found, chosen, len(gold)), (table,),
            summary_passages(gold, {name: told[name] for name in written}, naming),
        )  # fmt: skip

    def _decodings(self, reader: Reader, gold: Sequence[Example], naming: Naming | None) -> tuple[Decoded, Seconds]:
        """What the model writes without and with the constraint, and what the untouched base does; seconds of each."""
        top, told, seconds = reader.top, Decoded(), Seconds()

        def timed(name: str, made: Callable[[], list[Example]]) -> None:
            began = time.perf_counter()
            told[name] = made()
            seconds[name] = (time.perf_counter() - began) / len(gold)

        timed(FREE, lambda: self._written(reader, gold))
        if naming:
            timed(BOUND, lambda: self._bound(reader, told[FREE], naming))
            seconds[BOUND] += seconds[FREE]
        with top.untouched():
            timed(BASE, lambda: self._written(reader, gold))
        return told, seconds


Rule = Callable[[str], Sequence[int]]
Decoded = dict[str, list[Example]]
Seconds = dict[str, float]


def _ids(base: Base, text: str) -> list[int]:
    return base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _asked(example: Example) -> Example:
    """The document without its title, if that is the summary; the summary in one line."""
    return replace(untitled(example), summary=" ".join(example.summary.split()))


def _sample(examples: Iterable[Example], count: int) -> list[Example]:
    """`count` of the documents with a summary, in an order that only their text decides."""
    whole = (e for e in examples if e.text.strip() and e.summary)
    return sorted(whole, key=lambda e: sha256(e.text.encode()).digest())[:count]


def _ends(naming: Naming, supported: frozenset[str], text: str) -> list[int]:
    """Where the names end that a text must not have."""
    return [span.end for span in naming.invented(text, supported)]


def _perplexity(sequences: Sequence[Tokens], nats: Sequence[float], seed: int) -> Score:
    """Among how many tokens the next one of a gold summary is drawn, so to say."""
    rows = [(s.group, (value, sum(s.tags))) for s, value in zip(sequences, nats, strict=True)]
    return bootstrap(by_document(rows), lambda sums: np.exp(sums[:, 0] / sums[:, 1]), seed=seed)


def _sentences(gold: Sequence[Example], number: int) -> list[Example]:
    """The documents with one of their sentences as the summary."""
    return [replace(e, summary=" ".join(SENTENCE.split(e.text.strip())[number].split())) for e in gold]


def _scores(gold: Sequence[Example], told: Sequence[Example], naming: Naming | None, seed: int) -> dict[str, Score]:
    concepts = concept_scores(gold, told, naming, seed=seed) if naming else {}
    return summary_scores(gold, told, seed=seed) | concepts


def _table(found: Mapping[str, Mapping[str, Score]], seconds: Seconds, gold: Mapping[str, Score]) -> Table:
    """Who writes how well; gold's own row tells how much of what people write the constraint would forbid."""
    rows: list[tuple[str | int | float, ...]] = [
        (name, *(round(score.value, 4) for score in scores.values()), round(seconds.get(name, 0.0), 2))
        for name, scores in {**found, "gold": gold}.items()
    ]
    return Table("Summaries", ("written", *gold, "seconds per document"), tuple(rows))


def _sentence(found: Mapping[str, Mapping[str, Score]], chosen: str, documents: int) -> str:
    told = f"ROUGE-L of {documents} held-out summaries: {found[chosen]['rougeL'].value:.3f}"
    told += "".join(f", {name} {found[name]['rougeL'].value:.3f}" for name in (BASE, "lead sentence"))
    if BOUND in found:
        free, bound = found[FREE], found[BOUND]
        change = 100 * (bound["rougeL"].value / free["rougeL"].value - 1) if free["rougeL"].value else 0.0
        told += (f"; of the concepts named {free['invented_rate'].value:.1%} are invented, with the constraint "
                 f"{bound['invented_rate'].value:.1%} (ROUGE-L {change:+.1f} %)")  # fmt: skip
    return f"{told}."
