"""The spaCy component "domainkit_medical": what a run finds, as entities and relations of a Doc.

>>> nlp = spacy.blank("en")
>>> nlp.add_pipe("domainkit_medical", config={"run": "runs/medical"})
>>> doc = nlp("Naloxone reverses the antihypertensive effect of clonidine.")
>>> [(ent.text, ent.label_, ent.kb_id_) for ent in doc.ents], doc._.relations

An entry point names it, so a pipeline that was saved loads again wherever domainkit is installed and the run lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import filter_spans, minibatch

from domainkit.run import Run, load

NAME = "domainkit_medical"
ASSIGNS = ["doc.ents", "token.ent_iob", "token.ent_type", "token.ent_kb_id", "doc._.relations"]


class Related(NamedTuple):
    """A relation of a document, as a tuple: so a DocBin can keep it."""

    head: str  # id of a concept, or "start:end" of a mention without one
    label: str
    tail: str
    score: float


@Language.factory(NAME, default_config={"run": "runs/medical", "base": None}, assigns=ASSIGNS)
def make(nlp: Language, name: str, run: str, base: str | None) -> Medical:
    """run: a run folder. base: where its base lies now, if it has moved."""
    return Medical(load(run, base=base))


class Medical:
    """Fills `doc.ents`, with `ent.kb_id_` where a concept fits, and `doc._.relations`.

    Entities begin and end with the pipeline's tokens; where they then overlap the longest is kept. Several ids of one
    composite mention are joined by ",".
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        if not Doc.has_extension("relations"):
            Doc.set_extension("relations", default=[])

    def __call__(self, doc: Doc) -> Doc:
        self._fill([doc])
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 16) -> Iterator[Doc]:
        """The documents one after another; `batch_size` of them are read together."""
        for docs in minibatch(stream, size=batch_size):
            self._fill(docs)
            yield from docs

    def _fill(self, docs: list[Doc]) -> None:
        for doc, found in zip(docs, self.run.extract([doc.text for doc in docs]), strict=True):
            ents = [
                doc.char_span(span.start, span.end, span.label, span.concept or "", alignment_mode="expand")
                for span in found.spans
            ]
            doc.ents = filter_spans([ent for ent in ents if ent is not None])
            doc._.relations = [Related(one.head, one.label, one.tail, one.score) for one in found.relations]
