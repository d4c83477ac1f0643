"""Named entities: which stretches of a text name a thing of which kind.

A document is read in windows that overlap; of each token the window counts in which it stands further from the edge.
The tagger reads several depths of the frozen trunk, the adapted top, which looks both ways here, and what the
concept graph's names say of the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from domainkit.data import bio
from domainkit.data.overlaps import overlaps
from domainkit.data.strangers import strangers
from domainkit.data.tokens import overlapping
from domainkit.gazetteer import Gazetteer
from domainkit.graph import ConceptGraph
from domainkit.kinds import Answer, Corpus, Outcome, Portion, Prepared, Reader, kept, made
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.top import Top
from domainkit.nets.tagger import Tagger
from domainkit.passages import passages
from domainkit.progress import say
from domainkit.report import Table
from domainkit.spanscore import PerLabel, Scores, link_accuracy, link_scores, span_scores
from domainkit.types import Example, Span, UserError
from domainkit.types import Sequence as Tokens

TOLD, WITHOUT, LINKED = "told", "without_names", "gold_linked"  # what an answer holds of a document


@dataclass(frozen=True)
class Settings:
    labels: tuple[str, ...] = ()  # kinds of entities, as the data calls them; none: all that the data has
    gazetteer: bool = True  # tell the tagger where the names of the domain's concept graph stand
    overlap: int = field(default=128, metadata={"min": 0})  # tokens that neighbouring windows of a document share


class Kind:
    """See `domainkit.kinds.Kind`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings

    def prepare(self, corpus: Corpus, base: Base) -> Prepared:
        corpus.check_both_ways(self.name)
        learned, held = corpus.sides()
        labels = self._labels([*learned, *held])
        for line in strangers([*learned, *held], labels, corpus.graph):
            say(f"{self.name}: {line}")
        learned, held = ([_asked(e, labels) for e in side if e.text.strip()] for side in (learned, held))
        if not held or (corpus.held_out and not learned):
            raise UserError("no document is left to " + ("learn from" if held else "test on"), where=self.name,
                            instead="more documents")  # fmt: skip
        names = Gazetteer.of_graph(corpus.graph, labels) if corpus.graph else None
        seen = ((e.text[s.start : s.end], labels.index(s.label)) for e in learned for s in e.spans)
        dictionaries = {"dictionary": names, "known mentions": Gazetteer(seen, labels) if learned else None}
        told = {name: [_named(found, e) for e in held] for name, found in dictionaries.items() if found}
        sides = [[s for e in side for s in self._windows(e, labels, corpus.graph, base, corpus.context)]
                 for side in (learned, held)]  # fmt: skip
        tables = (_count_table({"learned from": learned, "held out": held}),)
        return Prepared(tuple(sides[0]), tuple(sides[1]), labels=labels, gold=tuple(held), learned=tuple(learned),
                        rivals=told, tables=tables)  # fmt: skip

    def _labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The labels that are asked for. Raises UserError when the annotation has none of them."""
        found = Counter(span.label for example in examples for span in example.spans)
        labels = tuple(sorted(set(self.settings.labels or found)))
        if not any(label in found for label in labels):
            asked = f"labelled {' or '.join(labels)}" if labels else "annotated"
            instead = f"labels = {sorted(found)}" if found else "documents whose spans are annotated"
            raise UserError(f"no span is {asked}", where=self.name, instead=instead)
        return labels

    def _windows(self, e: Example, labels: tuple[str, ...], graph: ConceptGraph | None, base: Base,
                 context: int) -> Iterator[Tokens]:  # fmt: skip
        names = Gazetteer.of_types(graph, labels) if graph and self.settings.gazetteer else None
        marks = names.marks(e.text) if names else []
        windows = overlapping(e, base.tokenizer, base.prefix_id, context=context, overlap=self.settings.overlap)
        for s in windows:
            hints = names.hints(marks, e.text, s.offsets) if names else (0,) * len(s.ids)
            yield replace(s, tags=bio.tags(e.spans, e.text, s.offsets, labels), hints=hints)

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        return Tagger(base.width, prepared.depths + 2, len(prepared.labels))

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        logits = [found[1:] for found in self._logits(top, batch)]  # the prefix token has no tag
        gold = [torch.tensor(s.tags[1:], device=logits[0].device) for _, s in batch.placed]
        return self._head(top).chain.loss(logits, gold)

    def terms(self, sequences: Iterable[Tokens]) -> int:
        return sum(len(s.ids) - 1 for s in sequences)

    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        pass  # nothing to choose

    def _logits(self, top: Top, batch: Batch) -> list[Tensor]:
        """Of each sequence: (tokens, tags)."""
        states = top.depths(batch)
        spans = [slice(start, start + len(s.ids)) for start, s in batch.placed]
        hints = [torch.tensor(s.hints, device=states.device) for _, s in batch.placed]
        ids = [torch.tensor(s.ids, device=states.device) for _, s in batch.placed]
        return self._head(top)([states[span] for span in spans], hints, ids)

    def _head(self, top: Top) -> Tagger:
        return cast(Tagger, top.heads[self.name])

    @torch.no_grad()
    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> list[tuple[int, ...]]:
        """The likeliest tags of each sequence; the prefix token is outside."""
        logits = [found[1:] for found in self._logits(top, batch)]
        return [(bio.OUTSIDE, *found) for found in self._head(top).chain.best(logits)]

    def annotate(self, reader: Reader, examples: Sequence[Example]) -> list[Example]:
        """The documents with the entities that are found in them, linked if the reader can link."""
        found = self._found(reader, examples, reader.graph)
        return [reader.linker.link_document(e) for e in found] if reader.linker else found

    @torch.no_grad()
    def _found(self, reader: Reader, examples: Sequence[Example], graph: ConceptGraph | None) -> list[Example]:
        """The documents with the entities that are found in them, with or without what a graph's names say."""
        labels, top = reader.labels[self.name], reader.top_of(self.name)
        documents = [list(self._windows(e, labels, graph, reader.base, reader.context)) for e in examples]
        tags: dict[str, tuple[int, ...]] = {}
        for batch in reader.batched([s for windows in documents for s in windows]):
            found = self.predict(top, batch, labels)
            tags |= {s.digest: one for (_, s), one in zip(batch.placed, found, strict=True)}
        return [
            replace(e, spans=_joined(e.text, [(s, tags[s.digest]) for s in windows], labels), relations=())
            for e, windows in zip(examples, documents, strict=True)
        ]

    def answer(self, reader: Reader, portion: Portion) -> list[Answer]:
        """Each document as it is told; told without the graph's names; with gold's mentions linked."""
        gold = portion.documents
        found = {TOLD: self.annotate(reader, gold)}
        if reader.graph and self.settings.gazetteer:
            found[WITHOUT] = self._found(reader, gold, None)
        if reader.linker:
            found[LINKED] = [reader.linker.link_document(e) for e in gold]
        return kept(**found)

    def score(self, reader: Reader, prepared: Prepared, answers: Sequence[Answer], seed: int) -> Outcome:
        gold = prepared.gold
        predicted, without, linked = (made(answers, name) for name in (TOLD, WITHOUT, LINKED))
        scores, per_label = span_scores(gold, predicted, seed=seed)
        rivals = cast(Mapping[str, Sequence[Example]], prepared.rivals)
        baseline = {name: span_scores(gold, told, seed=seed)[0] for name, told in rivals.items()}
        beside = "".join(f", {name} alone {found['f1'].value:.3f}" for name, found in baseline.items())
        told = f"Strict F1 of entities in {len(gold)} held-out documents: {scores['f1'].value:.3f}{beside}."
        if linked and any(span.concept for e in gold for span in e.spans):
            found, labelled = _link_scores(gold, predicted, linked, seed)
            scores |= found
            per_label = {label: {**of, **labelled.get(label, {})} for label, of in per_label.items()}
            told += f" Concepts: {scores['link_accuracy'].value:.1%} of the linked gold mentions get the right one."
        tables = (_gazetteer_table(scores, span_scores(gold, without, seed=seed)[0]),) if without else ()
        return Outcome(scores, per_label, baseline, told, tables, passages(gold, predicted))


def _gazetteer_table(scores: Scores, without: Scores) -> Table:
    """What the tagger makes of the graph's names: the same one, told nothing. One that learns without does better
    than that."""
    names = ("precision", "recall", "f1")
    rows: list[tuple[str | int | float, ...]] = [
        (name, *(round(side[key].value, 4) for key in names))
        for name, side in (("told", scores), ("told nothing", without))
    ]
    return Table("The tagger with and without the graph's names", ("names", *names), tuple(rows))


def _link_scores(
    gold: Sequence[Example], predicted: Sequence[Example], linked: Sequence[Example], seed: int
) -> tuple[Scores, PerLabel]:
    """How well concepts are told: of gold mentions, which are `linked`, and of predicted ones, end to end."""
    on_gold, by_label = link_accuracy(gold, linked, seed=seed)
    end_to_end, other = link_scores(gold, predicted, seed=seed)
    told = {label: {key: value for key, value in of.items() if key != "support"} for label, of in other.items()}
    return {**on_gold, **end_to_end}, {label: {**of, **told.get(label, {})} for label, of in by_label.items()}


def _asked(example: Example, labels: Sequence[str]) -> Example:
    """The document with the spans that are asked for."""
    return replace(example, spans=tuple(span for span in example.spans if span.label in labels))


def _named(names: Gazetteer, example: Example) -> Example:
    """The document with the spans that a dictionary alone would find."""
    spans = (Span(start, end, names.labels[label]) for start, end, label in names.find(example.text))
    return replace(example, spans=tuple(spans), relations=())


def _joined(text: str, windows: Sequence[tuple[Tokens, tuple[int, ...]]], labels: Sequence[str]) -> tuple[Span, ...]:
    """The spans of a document, each token tagged by the window in which it stands further from an edge."""
    best: dict[tuple[int, int, int], tuple[int, int]] = {}  # token → (tokens to the edge, tag)
    for s, tags in windows:
        last, met = len(s.ids) - 1, Counter[tuple[int, int]]()
        for i in range(1, len(s.ids)):  # the first is the prefix token
            start, end = s.offsets[i]
            token = (start, end, met[start, end])  # several tokens may share a character
            met[start, end] += 1
            room = min(i if s.offsets[1][0] else last, last - i if s.offsets[-1][1] < len(text) else last)
            if token not in best or room > best[token][0]:
                best[token] = (room, tags[i])
    ordered = sorted(best)
    return bio.spans([best[token][1] for token in ordered], text, [token[:2] for token in ordered], labels)


def _count_table(sides: Mapping[str, Sequence[Example]]) -> Table:
    """What the annotation holds; of spans in or across others tags tell one, and discontinuous ones whole."""
    counted = [(name, len(side), overlaps(side)) for name, side in sides.items() if side]
    rows = tuple((name, size, c.spans, c.nested, c.crossing, c.discontinuous) for name, size, c in counted)
    return Table("Annotation", ("documents", "count", "spans", "nested", "crossing", "discontinuous"), rows)
