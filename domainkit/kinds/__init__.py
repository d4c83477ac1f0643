"""One file per kind of task; the file name is the registration, its `Kind` is the class.

A kind turns examples into token sequences, says what is learned from their states and what the report shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn

from domainkit.data.jsonl import line, parse
from domainkit.data.mix import split
from domainkit.fill import fill
from domainkit.glossary import Glossary
from domainkit.graph import ConceptGraph
from domainkit.link import Linker
from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.top import DEFAULT, Top
from domainkit.passages import Passage
from domainkit.report import Table
from domainkit.score import Score
from domainkit.spec import Task
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens


@dataclass(frozen=True)
class Corpus:
    """What a task is fed: its examples by source, and what belongs to the whole run."""

    domain: str
    examples: Mapping[str, Sequence[Example]]  # by source name, unfiltered
    parts: Mapping[str, str]  # source name → "domain" | "general"
    context: int  # tokens per sequence
    seed: int
    held_out: bool = True  # False: everything is test data (a file given to `eval`)
    glossary: Glossary | None = None  # whose terms have tokens of their own in the base
    graph: ConceptGraph | None = None  # what its concepts are called, and which relations may link them
    splits: Mapping[str, str] = field(default_factory=dict)  # source name → "train" | "test", where the source says so

    def check_both_ways(self, task: str) -> None:
        """Raise UserError when sequences may be too long for a task whose tokens see each other both ways."""
        if self.context > BOTH_WAYS:
            raise UserError(
                f"context is {self.context}, and every token would be compared with every other",
                where=task,
                instead=f"--set context={BOTH_WAYS} or less: a longer document is read in windows that overlap",
            )

    def sides(self) -> tuple[list[Example], list[Example]]:
        """What to learn from and what is held out: as the sources say, else by the hash of the document."""
        learned: list[Example] = []
        held: list[Example] = []
        for source, examples in self.examples.items():
            chosen = self.splits.get(source, "") if self.held_out else "test"
            found = list(examples)
            train, test = {"train": (found, []), "test": ([], found)}.get(chosen) or split(found)
            learned += train
            held += test
        return learned, held


@dataclass(frozen=True)
class Prepared:
    """What a task brings to a run."""

    train: tuple[Tokens, ...]  # one epoch; a sequence may stand in it more than once
    test: tuple[Tokens, ...]
    plain: tuple[Tokens, ...] = ()  # the text of `test` in the base's own tokens, if it is not `test` itself
    check: tuple[Tokens, ...] = ()  # kept from training, for `Kind.settle` to choose on
    labels: tuple[str, ...] = ()
    labelled: tuple[Tokens, ...] = ()  # every text with a known label, also beyond `train`: a head may learn from them
    gold: tuple[Example, ...] = ()  # the documents of `test` as they are annotated
    learned: tuple[Example, ...] = ()  # those of `train`, where a linker may learn from their concepts
    depths: int = 0  # how many depths of the trunk stand in the activations beside its output
    adapter: str = DEFAULT  # which of the run's adapters it trains and is scored with
    epochs: int = 0  # times `train` is seen, spread over the run; 0: in every epoch
    tables: tuple[Table, ...] = ()  # filter counts, mixture: shown in the report
    rivals: Mapping[str, object] = field(default_factory=dict)  # what baselines are fitted on

    @property
    def sequences(self) -> tuple[Tokens, ...]:
        """All that need activations."""
        return (*self.train, *self.check, *self.test, *self.plain)

    def portions(self) -> Iterator[Portion]:
        """What it is tested on, some at a time; only the data decide how much."""
        for first in range(0, len(self.gold or self.test), TOGETHER):
            some = slice(first, first + TOGETHER)
            yield (
                Portion(first, self.gold[some]) if self.gold else Portion(first, (), self.test[some], self.plain[some])
            )


@dataclass(frozen=True)
class Portion:
    """Some of what a task is tested on: documents, or token sequences where it has none."""

    first: int  # number of the first one, among all
    documents: tuple[Example, ...] = ()  # as they are annotated
    sequences: tuple[Tokens, ...] = ()
    plain: tuple[Tokens, ...] = ()  # see `Prepared.plain`


@dataclass(frozen=True)
class Outcome:
    """What a task scored on its test sequences."""

    scores: Mapping[str, Score]
    per_label: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, Score]]
    summary: str  # one sentence for people
    tables: tuple[Table, ...] = ()
    examples: tuple[Passage, ...] = ()  # documents to look at, errors first


CHUNK = 32  # documents that are passed from task to task together
TOGETHER = 128  # documents, or sequences, that are tested together
ANNOTATING = ("ner", "relation", "summary")  # kinds that annotate documents; each builds on those before it

BOTH_WAYS = 8192  # tokens of a sequence at most whose tokens see each other both ways: attention is dense there

Batched = Callable[[Sequence[Tokens]], Iterable[Batch]]  # token sequences → batches with their activations
Answer = Any  # what is found of one document, or sequence, that is tested; JSON keeps it as it is
T = TypeVar("T")


class Kind(Protocol):
    """The contract of every file in `kinds/`: a frozen dataclass `Settings` and a class `Kind(name, settings)`."""

    name: str  # of the task

    def prepare(self, corpus: Corpus, base: Base) -> Prepared:
        """Clean, split and tokenize. Raises UserError when too little is left."""

    def head(self, base: Base, prepared: Prepared) -> nn.Module | None:
        """The head this task adds, or None."""

    def loss(self, top: Top, batch: Batch, labels: Sequence[str]) -> Tensor:
        """Loss in nats, summed over the batch's terms."""

    def terms(self, sequences: Iterable[Tokens]) -> int:
        """How many terms the loss sums over: predicted tokens, or texts."""

    def settle(self, top: Top, batches: Iterable[Batch], labels: Sequence[str]) -> None:
        """After training: choose what is best chosen on texts that training did not see, batches of `check`."""

    def predict(self, top: Top, batch: Batch, labels: Sequence[str]) -> Sequence[object]:
        """One answer per sequence of the batch, in the batch's order."""

    def answer(self, reader: Reader, portion: Portion) -> list[Answer]:
        """What is found, one answer for each that is tested: all that has to be computed by the model."""

    def score(self, reader: Reader, prepared: Prepared, answers: Sequence[Answer], seed: int) -> Outcome:
        """Score the answers to all that is tested, beside the untouched base's or those of another baseline."""


class Annotator(Kind, Protocol):
    """A kind that writes what it finds into documents."""

    def annotate(self, reader: Reader, examples: Sequence[Example]) -> list[Example]:
        """The documents, in order, with what this kind finds in place of what they had of it."""


@dataclass(frozen=True)
class Reader:
    """A top with all the tasks of its run: what documents are read with."""

    top: Top
    base: Base
    batched: Batched
    context: int  # tokens per sequence
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of each task
    adapters: Mapping[str, str] = field(default_factory=dict)  # of each task; DEFAULT when not named
    graph: ConceptGraph | None = None
    linker: Linker | None = None

    def top_of(self, task: str) -> Top:
        """The top with the adapter of a task in use."""
        self.top.use(self.adapters.get(task, DEFAULT))
        return self.top

    def each(self, sequences: Sequence[Tokens], answer: Callable[[Batch], Sequence[T]]) -> list[T]:
        """What `answer` says of each sequence, in their order; it is asked batch by batch."""
        found = dict[int, T]()
        for batch in self.batched(sequences):
            found |= {id(s): one for (_, s), one in zip(batch.placed, answer(batch), strict=True)}
        return [found[id(s)] for s in sequences]

    def annotate(self, examples: Sequence[Example], *, until: str = "", tasks: Collection[str] = ()) -> list[Example]:
        """The documents with all that the tasks find: spans and their concepts, then relations, then a summary.

        until: only what the tasks before this one find, for it builds on them. tasks: those that are asked; none: all.
        """
        found = list[Example]()
        for start in range(0, len(examples), CHUNK):
            with self.top.sharing():
                found += self._annotated(examples[start : start + CHUNK], until, tasks)
        return found

    def _annotated(self, examples: Sequence[Example], until: str, tasks: Collection[str]) -> list[Example]:
        found = [replace(example, spans=(), relations=(), summary="") for example in examples]
        for name in (name for kind in ANNOTATING for name in self.of_kind(kind)):
            if name == until:
                break
            if name in tasks or not tasks:
                found = cast(Annotator, self.kinds[name]).annotate(self, found)
        return found

    def of_kind(self, kind: str) -> list[str]:
        """The names of the tasks of a kind."""
        return [name for name, its in self.kinds.items() if type(its).__module__.endswith(f".{kind}")]


def kept(**made: Sequence[Example]) -> list[Answer]:
    """An answer for each document: what was made of it, under several names."""
    return [dict(zip(made, map(line, each), strict=True)) for each in zip(*made.values(), strict=True)]


def made(answers: Iterable[Answer], name: str) -> list[Example]:
    """The documents that `kept` has under a name; those that have none are left out."""
    return [parse(answer[name]) for answer in answers if name in answer]


def load_kind(task: Task) -> Kind:
    """The kind of a task, with its settings checked. Raises UserError for an unknown kind or setting."""
    return make_kind(task.kind, task.name, task.settings, where=task.origin)


def make_kind(kind: str, name: str, settings: Mapping[str, object], *, where: str) -> Kind:
    """The `Kind` of `kinds/<kind>.py` for the task `name`; `where` the settings come from, for messages."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if kind not in known:
        raise UserError(f"unknown kind {kind!r}", where=where, instead=f"one of {known}")
    module = import_module(f"domainkit.kinds.{kind}")
    return module.Kind(name, fill(module.Settings, settings, where=where))
