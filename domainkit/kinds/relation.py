"""Relations: which concepts of a document it says are related, and how.

A relation is asked of every pair of concepts that a document names, unless the type table of the domain's concept graph
rules it out. A long document is read in windows that overlap: a pair is asked for wherever one window names both, and
what several windows say of it counts once, by the surest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from domainkit.data.pairs import TOGETHER, Pairs, Window, windows
from domainkit.data.signatures import Outside, Signatures, entity_labels, stated
from domainkit.data.specific import most_specific
from domainkit.data.tokens import overlapping
from domainkit.graph import ConceptGraph
from domainkit.kinds import Answer, Corpus, Outcome, Portion, Prepared, Reader, kept, made
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.top import Top
from domainkit.nets.relations import TOLD, Relations
from domainkit.report import Table
from domainkit.score import Score
from domainkit.spanscore import PerLabel, Scores, relation_scores
from domainkit.types import Example, Relation, UserError
from domainkit.types import Sequence as Tokens

GOLD, FOUND, FREE = "gold", "found", "unmasked_"  # what an answer holds of a document
ENTITY, RELATION = "entity:", "relation:"  # what the two sorts of labels begin with in a run's record
COMPARED = 100  # documents that are read once more without the mask, when every pair is asked
COLUMNS = ("precision", "recall", "f1")
OUTSIDE = "Annotated relations that the type table does not allow"
LISTED = 20  # relations outside the type table that the report spells out


@dataclass(frozen=True)
class Settings:
    labels: tuple[str, ...] = ()  # relations, as the data calls them; none: all that the data has
    entities: tuple[str, ...] = ()  # kinds of entities they may link, as the data calls them; none: all
    names: dict[str, str] = field(default_factory=dict)  # what the graph's type table calls a label of the data
    directed: bool = True  # whether it counts which of two concepts is the head
    mask: bool = True  # rule out what the graph's type table does not allow
    adapted: bool = True  # read the adapted layers beside the trunk, and teach them; else the trunk alone
    specific: bool = False  # of what is told in general and in particular, keep what is told in particular
    overlap: int = field(default=128, metadata={"min": 0})  # tokens that neighbouring windows of a document share


class Kind:
    """See `domainkit.kinds.Kind`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings

    def prepare(self, corpus: Corpus, base: Base) -> Prepared:
        if self.settings.adapted:
            corpus.check_both_ways(self.name)
        learned, held = ([e for e in side if e.text.strip()] for side in corpus.sides())
        if not held or (corpus.held_out and not learned):
            raise UserError("no document is left to " + ("learn from" if held else "test on"), where=self.name,
                            instead="more documents")  # fmt: skip
        asked = self._asked([*learned, *held], corpus.graph)
        learned, held = ([_with(e, asked.relations) for e in side] for side in (learned, held))
        wrong = [(side, e, one) for side, found in (("learned from", learned), ("held out", held))
                 for e in found for one in asked.outside(e)]  # fmt: skip
        lawful = [_without(e, {(o.head, o.label, o.tail) for o in asked.outside(e)}) for e in learned]
        sides = [[list(self._windows(e, asked, corpus.graph, base, corpus.context)) for e in side]
                 for side in (lawful, held)]  # fmt: skip
        train, test = ([s for found in side for s in found] for side in sides)
        train = [s for s in train if len(s.pairs.heads)]
        if corpus.held_out and not train:
            raise UserError("no two concepts that may be related stand together", where=self.name,
                            instead="documents whose spans are annotated")  # fmt: skip
        tables = [_count_table([("learned from", lawful, sides[0]), ("held out", held, sides[1])])]
        tables += [_mask_table(asked), _outside_table(wrong)] if corpus.graph and self.settings.mask else []
        told = _baselines(held, sides[1], asked, _usual(learned or held, self.settings.directed))
        return Prepared(
            tuple(train), tuple(test), gold=tuple(held), learned=tuple(learned), tables=tuple(tables),
            labels=_labels(asked), rivals={"asked": asked, "baselines": told},
        )  # fmt: skip

    def _asked(self, examples: Sequence[Example], graph: ConceptGraph | None) -> Signatures:
        """What is asked for, and what it may link. Raises UserError when the annotation has none of it."""
        found = Counter(relation.label for example in examples for relation in example.relations)
        labels = tuple(sorted(set(self.settings.labels or found)))
        if not any(label in found for label in labels):
            sought = f"labelled {' or '.join(labels)}" if labels else "annotated"
            instead = f"labels = {sorted(found)}" if found else "documents whose relations are annotated"
            raise UserError(f"no relation is {sought}", where=self.name, instead=instead)
        entities = tuple(sorted(set(self.settings.entities or (s.label for e in examples for s in e.spans))))
        if not (graph and self.settings.mask):
            return Signatures.free(labels, entities)
        asked = Signatures.of_graph(graph, labels, entities, names=self.settings.names, where=self.name)
        return asked if self.settings.directed else asked.both_ways()

    def _windows(self, e: Example, asked: Signatures, graph: ConceptGraph | None, base: Base,
                 context: int) -> Iterator[Window]:  # fmt: skip
        found = overlapping(e, base.tokenizer, base.prefix_id, context=context, overlap=self.settings.overlap)
        return windows(e, found, asked, directed=self.settings.directed, graph=graph)

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        relations, entities = _halves(prepared.labels)
        depths = prepared.depths + 1 + self.settings.adapted
        if not prepared.train:  # of a finished run, whose weights bring the mask
            return Relations(base.width, depths, torch.from_numpy(Signatures.free(relations, entities).allowed))
        asked, train = cast(Signatures, prepared.rivals["asked"]), cast(Sequence[Window], prepared.train)
        facts = torch.cat([torch.from_numpy(s.pairs.facts) for s in train])
        return Relations(base.width, depths, torch.from_numpy(asked.allowed), facts)

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        return self._head(top).loss(*self._read(top, batch))

    def terms(self, sequences: Iterable[Tokens]) -> int:
        return sum(len(cast(Window, s).pairs.heads) for s in sequences)

    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        pass  # nothing to choose

    def _head(self, top: Top) -> Relations:
        return cast(Relations, top.heads[self.name])

    def _read(self, top: Top, batch: Batch) -> tuple[list[Tensor], list[Pairs]]:
        """Of each window: states (tokens, depths * width), and its pairs."""
        states = top.depths(batch) if self.settings.adapted else top.below(batch)
        windows = [(at, cast(Window, s)) for at, s in batch.placed]
        return [states[at : at + len(s.ids)] for at, s in windows], [s.pairs for _, s in windows]

    @torch.no_grad()
    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> list[tuple[float, ...]]:
        """How likely each relation is, pair by pair of each window."""
        found = self._head(top).probabilities(*self._read(top, batch))
        return [tuple(likely.flatten().tolist()) for likely in found]

    @torch.no_grad()
    def _told(self, top: Top, batch: Batch, labels: Sequence[str], *, masked: bool) -> list[tuple[Relation, ...]]:
        """The relations that each window tells."""
        relations, _ = _halves(labels)
        states, pairs = self._read(top, batch)
        found = self._head(top).probabilities(states, pairs, masked=masked)
        told = []
        for one, likely in zip(pairs, found, strict=True):
            told.append(tuple(
                Relation(one.names[one.heads[pair]], relations[r], one.names[one.tails[pair]], float(likely[pair, r]))
                for pair, r in (likely > TOLD).nonzero().tolist()
            ))  # fmt: skip
        return told

    def annotate(self, reader: Reader, examples: Sequence[Example]) -> list[Example]:
        """The documents with the relations between the concepts that they name."""
        return self._annotated(reader, examples, masked=True)

    def _annotated(self, reader: Reader, examples: Sequence[Example], *, masked: bool) -> list[Example]:
        labels, top = reader.labels[self.name], reader.top_of(self.name)
        asked = Signatures.free(*_halves(labels))
        if masked:
            asked = replace(asked, allowed=self._head(top).mask.cpu().numpy())
        windows = [list(self._windows(e, asked, reader.graph, reader.base, reader.context)) for e in examples]
        told: dict[int, tuple[Relation, ...]] = {}  # two documents may have the same tokens, so by the window itself
        for batch in reader.batched([s for found in windows for s in found]):  # all: entities were found in the same
            found = self._told(top, batch, labels, masked=masked)
            told |= {id(s): one for (_, s), one in zip(batch.placed, found, strict=True)}
        return [
            replace(e, relations=self._kept(_joined(one for s in found for one in told.get(id(s), ())), reader.graph))
            for e, found in zip(examples, windows, strict=True)
        ]

    def _kept(self, told: tuple[Relation, ...], graph: ConceptGraph | None) -> tuple[Relation, ...]:
        return most_specific(told, graph) if graph and self.settings.specific else told

    def answer(self, reader: Reader, portion: Portion) -> list[Answer]:
        """Each document with the relations between gold's entities and between those that are found; as long as they
        are to be compared, also with those that are told without the mask."""
        gold = portion.documents
        given = {GOLD: gold, FOUND: reader.annotate(gold, until=self.name)}
        told = kept(**{name: self._between(reader, e, masked=True) for name, e in given.items()})
        some = max(0, COMPARED - portion.first)
        free = kept(**{FREE + name: self._between(reader, e[:some], masked=False) for name, e in given.items()})
        return [*(one | other for one, other in zip(told, free, strict=False)), *told[len(free) :]]

    def _between(self, reader: Reader, documents: Sequence[Example], *, masked: bool) -> list[Example]:
        """`_annotated`, if there is anything to relate."""
        if any(e.spans for e in documents):
            return self._annotated(reader, documents, masked=masked)
        return [replace(e, relations=()) for e in documents]

    def score(self, reader: Reader, prepared: Prepared, answers: Sequence[Answer], seed: int) -> Outcome:
        gold, (relations, entities) = prepared.gold, _halves(reader.labels[self.name])
        undirected = () if self.settings.directed else relations
        mask = Signatures(relations, entities, self._head(reader.top).mask.cpu().numpy())

        def scored(told: Sequence[Example]) -> tuple[Scores, PerLabel]:
            return relation_scores(gold[: len(told)], told, seed=seed, undirected=undirected)

        scores, per_label = dict[str, Score](), dict[str, dict[str, float]]()
        rows = list[tuple[str | int | float, ...]]()
        for name in (GOLD, FOUND):  # where the entities come from
            told, free = made(answers, name), made(answers, FREE + name)
            if name == FOUND and not any(e.spans for e in told):
                continue
            values, by_label = scored(told)
            scores |= {key if name == GOLD else f"end_to_end_{key}": value for key, value in values.items()}
            per_label = per_label or by_label
            for state, some in (("on", told[: len(free)]), ("off", free)):
                broken = sum(1 for e in some for _ in mask.outside(e))
                facts, (values, _) = sum(len(e.relations) for e in some), scored(some)
                rows.append((name, state, len(some), facts, broken, *(values[key].value for key in COLUMNS)))
        rivals = cast(Mapping[str, Sequence[Example]], prepared.rivals["baselines"])
        baseline = {name: scored(told)[0] for name, told in rivals.items()}
        return Outcome(scores, per_label, baseline, _summary(scores, len(gold)), () if mask.allowed.all() else (
            Table("Relations with and without the type table's mask",
                  ("entities", "mask", "documents", "told", "not allowed", *COLUMNS), tuple(rows)),
        ))  # fmt: skip


def _labels(asked: Signatures) -> tuple[str, ...]:
    return (*(ENTITY + label for label in asked.entities), *(RELATION + label for label in asked.relations))


def _halves(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A run's labels → those of relations, those of entities."""
    relations, entities = (
        tuple(label.removeprefix(sort) for label in labels if label.startswith(sort)) for sort in (RELATION, ENTITY)
    )
    return relations, entities


def _joined(told: Iterable[Relation]) -> tuple[Relation, ...]:
    """Each relation once, with the highest of its scores, the surest first."""
    best: dict[tuple[str, str, str], Relation] = {}
    for one in told:
        key = one.head, one.label, one.tail
        if key not in best or one.score > best[key].score:
            best[key] = one
    return tuple(sorted(best.values(), key=lambda one: -one.score))


def _with(example: Example, labels: Sequence[str]) -> Example:
    """The document with the relations that are asked for, of single ids each."""
    told = dict.fromkeys(fact for fact in stated(example.relations) if fact[1] in labels)
    return replace(example, relations=tuple(Relation(*fact) for fact in told))


def _without(example: Example, wrong: Collection[tuple[str, str, str]]) -> Example:
    kept = (one for one in example.relations if (one.head, one.label, one.tail) not in wrong)
    return replace(example, relations=tuple(kept))


def _usual(examples: Iterable[Example], directed: bool) -> dict[tuple[str, str], str]:
    """The most frequent relation between two entity labels."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for e in examples:
        label = entity_labels(e)
        for one in e.relations:
            ends = label.get(one.head, ""), label.get(one.tail, "")
            for pair in {ends} if directed else {ends, ends[::-1]}:
                counts[pair][one.label] += 1
    return {ends: found.most_common(1)[0][0] for ends, found in counts.items()}


def _baselines(documents: Sequence[Example], windows: Sequence[Sequence[Window]], asked: Signatures,
               usual: Mapping[tuple[str, str], str]) -> dict[str, list[Example]]:  # fmt: skip
    """What is told by nothing but labels: every pair, or every one in a sentence, has the usual relation of its two."""
    every, together = list[Example](), list[Example]()
    for document, found in zip(documents, windows, strict=True):
        told = [
            (Relation(pairs.names[h], usual[ends], pairs.names[t]), bool(facts[TOGETHER]))
            for pairs in (s.pairs for s in found)
            for h, t, facts in zip(pairs.heads, pairs.tails, pairs.facts, strict=True)
            if (ends := (asked.entities[pairs.labels[h]], asked.entities[pairs.labels[t]])) in usual
        ]
        every.append(replace(document, relations=_joined(one for one, _ in told)))
        together.append(replace(document, relations=_joined(one for one, near in told if near)))
    return {"every pair": every, "pairs in one sentence": together}


def _count_table(sides: Iterable[tuple[str, Sequence[Example], Sequence[Sequence[Window]]]]) -> Table:
    """What the annotation holds, and how much of it is asked for."""
    rows = [
        (name, len(documents), sum(len(e.relations) for e in documents),
         sum(len(s.pairs.heads) for found in windows for s in found),
         sum(int(s.pairs.gold.sum()) for found in windows for s in found))
        for name, documents, windows in sides if documents
    ]  # fmt: skip
    return Table("Annotation", ("documents", "count", "relations", "pairs asked for", "related"), tuple(rows))


def _mask_table(asked: Signatures) -> Table:
    rows = tuple((label, "; ".join(asked.links(label)) or "nothing") for label in asked.relations)
    return Table("What relations may link by the type table", ("relation", "head → tail"), rows)


def _outside_table(wrong: Sequence[tuple[str, Example, Outside]]) -> Table:
    """What the annotation says against the type table, to be looked at by a person."""
    rows = [(side, e.id, one.head, one.label, one.tail, " → ".join(one.ends)) for side, e, one in wrong]
    more = [(f"and {len(rows) - LISTED} more", *[""] * 5)] if len(rows) > LISTED else []
    columns = ("documents", "document", "head", "relation", "tail", "types")
    return Table(OUTSIDE, columns, (*rows[:LISTED], *more) or (("none", *[""] * 5),))


def _summary(scores: Scores, documents: int) -> str:
    told = f"F1 of relations in {documents} held-out documents, between gold entities: {scores['f1'].value:.3f}"
    found = scores.get("end_to_end_f1")
    return f"{told}; end to end, between those found in the text: {found.value:.3f}." if found else f"{told}."
