"""A finished run in a notebook: generate, classify, translate terms, measure, read its reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from domainkit.data.tokens import sequences
from domainkit.graph import ConceptGraph
from domainkit.kinds import ANNOTATING, Kind, Prepared, Reader, make_kind
from domainkit.kinds.lm import spoken
from domainkit.kinds.terms import Query, encode
from domainkit.link import FILE as LINKING
from domainkit.link import Linker
from domainkit.model import bundle
from domainkit.model.base import Base, load_base
from domainkit.model.batch import Batch, collate
from domainkit.model.names import embed_names
from domainkit.model.passing import Passing
from domainkit.model.precision import as_trained
from domainkit.model.split import Trunk
from domainkit.model.top import Top, adapt
from domainkit.model.trunk import forward
from domainkit.report import Report
from domainkit.types import Example, UserError
from domainkit.types import Sequence as Tokens


@dataclass(frozen=True)
class Run:
    """What `domainkit.load` returns. `model` is the whole adapted model, a plain PeftModel."""

    folder: Path
    record: bundle.Record
    base: Base
    model: PeftModel
    top: Top

    def generate(self, prompt: str, *, max_new_tokens: int = 64) -> str:
        """The model's greedy continuation of `prompt`."""
        tokenizer = self.base.tokenizer
        encoded = tokenizer(prompt, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            out = self.model.generate(**encoded, max_new_tokens=max_new_tokens, do_sample=False)
        return str(tokenizer.decode(out[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))

    def classify(self, texts: Sequence[str], task: str | None = None) -> list[tuple[str, float]]:
        """The best label of each text and its probability. `task` may be left out when only one classifies."""
        name = self._only("classify", task)
        labels, kind = self.record.tasks[name]["labels"], self._kind(name)
        self.top.use(self.record.tasks[name]["adapter"])
        limit = min(self.record.tasks[name]["settings"].get("max_tokens", math.inf), self.record.training["context"])
        tokens = [self._tokens(text, limit)[0] for text in texts]
        return [kind.predict(self.top, self._batch([s]), labels)[0] for s in tokens]

    def translate(self, term: str, sentence: str = "", task: str | None = None) -> tuple[str, float]:
        """The glossary's English term (its id) that a Chinese one means, and their cosine, -1 to 1.

        It is found from the rows that the terms have learned: a sentence is part of the question, but changes nothing.
        """
        name = self._only("terms", task)
        self.top.use(self.record.tasks[name]["adapter"])
        asked = " ".join(term.split())
        query = encode([Query(sentence or asked, asked)], self.base, self.record.training["context"]) if asked else ()
        if not query:
            raise UserError("the term is empty, or too long for this run", instead="a Chinese term")
        return self._kind(name).predict(self.top, self._batch(list(query)), self.record.tasks[name]["labels"])[0]

    def extract(self, texts: Sequence[str], *, summary: str = "") -> list[Example]:
        """Each text with what the run's tasks find in it: entities and their concepts, relations.

        summary: the task that also writes one of each, such as "note"; it takes much longer. Texts are best given
        together: activations are computed for several at once. Raises UserError when no task does what is asked.
        """
        return self.annotate([Example(text, id=str(i)) for i, text in enumerate(texts)], summary=summary)

    def annotate(self, examples: Sequence[Example], *, summary: str = "") -> list[Example]:
        """`extract` for documents, which keep what else is known of them. Nothing is found in a blank one."""
        tasks = asked(self.record, self.folder, summary)
        found = iter(self.reader.annotate([e for e in examples if e.text.strip()], tasks=tasks))
        nothing = [replace(example, spans=(), relations=(), summary="") for example in examples]
        return [next(found) if example.text.strip() else example for example in nothing]

    @cached_property
    def reader(self) -> Reader:
        """What documents are read with."""
        record, tasks = self.record, self.record.tasks
        graph = ConceptGraph.load(record.training["graph"]) if record.training["graph"] else None
        linking = graph and (self.folder / LINKING).exists()
        linker = Linker.load(self.folder, graph, embed=partial(embed_names, self.base)) if graph and linking else None
        trunk, context = (
            Trunk(self.base, record.training["layers"], record.training["depths"]),
            record.training["context"],
        )
        return Reader(
            self.top, self.base, Passing(trunk, context=context), context,
            {name: self._kind(name) for name in tasks}, {name: tuple(task["labels"]) for name, task in tasks.items()},
            {name: str(task["adapter"]) for name, task in tasks.items()}, graph, linker,
        )  # fmt: skip

    def bits_per_byte(self, text: str) -> dict[str, float]:
        """How well base and adapted model predict `text`; smaller is better."""
        name = self._only("lm")
        kind = self._kind(name)
        self.top.use(self.record.tasks[name]["adapter"])
        plain = self._tokens(text, self.record.training["context"], self.base.plain)
        pieces = [spoken(s, self.base) for s in plain]
        size = sum(s.bytes for s in pieces) * math.log(2)
        adapted = sum(float(kind.predict(self.top, self._batch([s]), ())[0]) for s in pieces)
        base = sum(float(kind.base(self.top, self._batch([s]))[0]) for s in plain)
        return {"base": base / size, "adapted": adapted / size}

    def report(self, task: str) -> Report:
        """The evaluation report of a task."""
        return Report.read(self.folder / "reports" / f"{task}.json")

    def _kind(self, name: str) -> Any:
        return _kind(self.record, name, self.folder)

    def _only(self, kind: str, wanted: str | None = None) -> str:
        names = [name for name, task in self.record.tasks.items() if task["kind"] == kind]
        if wanted in names:
            return str(wanted)
        if wanted is not None:
            raise UserError(f"no task {wanted!r} of kind {kind!r}", where=self.folder, instead=f"one of {names}")
        if len(names) != 1:
            raise UserError(f"{len(names)} tasks of kind {kind!r}: {names}", where=self.folder, instead="name one")
        return names[0]

    def _tokens(self, text: str, context: float, tokenizer: Any = None) -> list[Tokens]:
        """A text in the run's tokens, or those of another tokenizer."""
        speaks = tokenizer or self.base.tokenizer
        tokens = list(sequences(Example(text), speaks, self.base.prefix_id, context=int(context)))
        if not tokens:
            raise UserError("the text is empty", instead="a text of one character or more")
        return tokens

    def _batch(self, tokens: list[Tokens]) -> Batch:
        trunk = Trunk(self.base, self.record.training["layers"], self.record.training["depths"])
        values = {s.digest: value for s, value in zip(tokens, forward(trunk, tokens), strict=True)}
        return collate([tuple(tokens)], values.__getitem__)


def load(run: str | Path, *, base: str | None = None, hub: bool = False) -> Run:
    """Load a run folder: the base it was trained on, its adapter and its heads.

    base: where the base lies now, if not where the run remembers. Raises UserError for an unfinished or changed
    run, and for a base with another fingerprint.
    """
    folder = Path(run)
    record = bundle.read(folder)
    remembered: Any = record.base
    loaded = load_base(
        base or remembered["name"], bits=remembered["bits"], precision=as_trained(record.training["precision"]),
        attention=remembered["attention"], context=record.training["context"], hub=hub,
        stream=record.training["stream"], keep=record.training["layers"],
    )  # fmt: skip
    bundle.check_base(record, loaded)
    loaded = bundle.restore_rows(folder, loaded, record)
    heads = {}
    for name, task in record.tasks.items():
        heads[name] = _kind(record, name, folder).head(
            loaded, Prepared((), (), labels=tuple(task["labels"]), depths=len(record.training["depths"]))
        )
    training = record.training
    top = adapt(
        loaded, bundle.heads_of(heads), layers=training["layers"], rank=training["rank"], alpha=training["alpha"],
        adapters=[task["adapter"] for task in record.tasks.values()], steer=training["steer"],
    )  # fmt: skip
    bundle.restore(folder, top)
    return Run(folder, record, loaded, bundle.whole(folder, loaded).eval(), top.eval())


def asked(record: bundle.Record, folder: Path, summary: str = "") -> tuple[str, ...]:
    """The tasks that documents are read with: all that find something, and the named one that writes summaries.

    Raises UserError when the run has none of them, or not that one.
    """
    kinds = {name: str(task["kind"]) for name, task in record.tasks.items()}
    writing = [name for name, kind in kinds.items() if kind == "summary"]
    finding = [name for name, kind in kinds.items() if kind in ANNOTATING and kind != "summary"]
    if summary and summary not in writing:
        instead = f"one of {writing}" if writing else "a run with such a task"
        raise UserError(f"no task {summary!r} of this run writes summaries", where=folder, instead=instead)
    if not (finding or summary):
        other = f"to ask for summaries, as one of {writing} writes them" if writing else "a medical run"
        raise UserError("no task of this run finds entities or relations", where=folder, instead=other)
    return (*finding, summary) if summary else tuple(finding)


def _kind(record: bundle.Record, name: str, folder: Path) -> Kind:
    task = record.tasks[name]
    return make_kind(task["kind"], name, task["settings"], where=str(folder / bundle.RECORD))
