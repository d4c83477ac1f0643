"""Linking: which concept of a graph a mention means, with a probability, or that it means none of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from domainkit.files import write_text
from domainkit.graph import ConceptGraph
from domainkit.link.abbreviation import Mention, abbreviations, expand, mentions, surface
from domainkit.link.context import with_context
from domainkit.link.embedding import Embed, Embedded
from domainkit.link.evidence import Case, Evidence, Sign
from domainkit.link.memory import Memory, Row
from domainkit.link.names import names_of
from domainkit.link.teach import learn
from domainkit.link.weigh import likelihood
from domainkit.types import Example, UserError

FILE = "linking.json"
SHOWN = 10  # candidates that are returned


@dataclass(frozen=True)
class Candidate:
    """A concept that a mention may mean."""

    id: str  # several of one composite mention are joined by ","
    score: float  # probability
    how: str  # how it was found: "exact", "normalised", "abbreviation", "learned" or "similar"


@dataclass(frozen=True)
class Learned:
    """What documents taught a linker."""

    mentions: tuple[Row, ...]  # mention, label, concept ids, how often
    weights: Mapping[str, float]  # of each `Sign`, by name
    threshold: float  # a mention is not linked whose best candidate is less probable
    embedded: bool  # whether names were embedded; then they always have to be


# Of a linker that read nothing: `python benchmarks/linking.py --untaught` fits them on BC5CDR's training set.
UNTAUGHT = Learned(
    (),
    MappingProxyType({
        "SPELLED": -0.0187, "EXACT": 1.4725, "PREFERRED": 1.1349, "NEAR": 4.0119, "NEAREST": 1.5612, "COVERED": -1.2406,
        "COVERING": 2.2234, "TYPED": 3.9003, "SAME": 1.3404, "ABOVE": 1.4552, "BELOW": 0.5073, "NONE": 9.6713,
    }),
    0.0932,
    False,
)  # fmt: skip


class Linker:
    """Links mentions to the concepts of a graph.

    learned: what `taught` brought; without it weights fitted on BC5CDR serve. embed: texts → vectors (texts, width),
    such as `domainkit.model.names.embed_names` of the backbone; needed where names were embedded in learning. The first
    mention waits until the names are prepared: about 5 s for 290,000. Raises UserError when `embed` is missing.
    """

    def __init__(self, graph: ConceptGraph, learned: Learned = UNTAUGHT, *, embed: Embed | None = None) -> None:
        if learned.embedded and not embed:
            raise UserError("this linker embeds names", where="linking", instead="the backbone's embedding beside it")
        self.graph, self.learned = graph, learned
        self._embedded = Embedded(embed) if embed and learned.embedded else None
        self._weights = np.array([learned.weights.get(sign.name, 0.0) for sign in Sign])

    @classmethod
    def taught(cls, graph: ConceptGraph, examples: Iterable[Example], *, embed: Embed | None = None) -> Linker:
        """A linker that documents with gold concepts taught; spans without one teach that a mention may mean none.

        Raises UserError when no span has a concept.
        """
        names, documents = names_of(graph), list(examples)
        memory = Memory.learn(names, documents)
        if not memory.rows:
            raise UserError("no span has a concept", where="linking", instead="documents with gold concepts")
        weights, threshold = learn(names, documents, Embedded(embed) if embed else None)
        return cls(graph, Learned(memory.rows, weights, threshold, embed is not None), embed=embed)

    def link(self, mention: str, *, label: str = "", text: str | Mapping[str, str] = "") -> list[Candidate]:
        """The concepts that a mention may mean, the likeliest first; none when none of them fits.

        label: its entity type, "" for any. text: the document it stands in, or the abbreviations that one defines.

        >>> linker.link("MI", label="Disease", text="Myocardial infarction (MI) was rare.")[0].id
        'D009203'
        """
        written = " ".join(mention.split())
        defined = abbreviations(text) if isinstance(text, str) else text
        return self._candidates(*self._evidence.cases([Mention(written, label, expand(written, defined))]))

    def link_document(self, example: Example) -> Example:
        """The document with the likeliest concept on every span, None where none fits.

        Mentions that read alike and have one label mean the same; what the others mean speaks for it.
        """
        found = mentions(example)
        cases = self._evidence.cases(list(found.values()))
        best: dict[tuple[str, str], str | None] = {}
        for key, case in zip(found, with_context(cases, self.graph.above, self._weights), strict=True):
            candidates = self._candidates(case)
            best[key] = candidates[0].id if candidates else None
        spans = (replace(span, concept=best[surface(example, span), span.label]) for span in example.spans)
        return replace(example, spans=tuple(spans))

    def save(self, folder: Path) -> None:
        """Write what was learned into a folder, as `linking.json`. Raises UserError when that cannot be written."""
        told = {"weights": dict(self.learned.weights), "threshold": self.learned.threshold,
                "embedded": self.learned.embedded, "mentions": self.learned.mentions}  # fmt: skip
        write_text(folder / FILE, json.dumps(told, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path, graph: ConceptGraph, *, embed: Embed | None = None) -> Linker:
        """The linker that was saved into a folder. Raises UserError when it is missing or damaged."""
        file = folder / FILE
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            rows = tuple((str(m), str(label), str(ids), int(count)) for m, label, ids, count in told["mentions"])
            weights = {Sign[name].name: float(weight) for name, weight in told["weights"].items()}
            learned = Learned(rows, weights, float(told["threshold"]), bool(told["embedded"]))
        except OSError as error:
            raise UserError("no linker here", where=file, instead="a folder that `Linker.save` wrote to") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the linker is damaged ({error})", where=file, instead="learn it again") from error
        return cls(graph, learned, embed=embed)

    @cached_property
    def _evidence(self) -> Evidence:
        names = names_of(self.graph)
        return Evidence(names, Memory(names, self.learned.mentions), self._embedded)

    def _candidates(self, case: Case) -> list[Candidate]:
        probabilities = likelihood(case.evidence, self._weights)[:-1]
        ranked = sorted(zip(-probabilities, case.ids, case.hows, strict=True))[:SHOWN]
        if not ranked or -ranked[0][0] < self.learned.threshold:
            return []
        return [Candidate(ids, float(-score), how) for score, ids, how in ranked]
