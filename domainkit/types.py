"""The values everything passes along: examples, spans, sequences, and the one error users see."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256


class UserError(Exception):
    """A fault the user can mend. Says what is wrong, where, and what to do instead.

    >>> str(UserError("not valid JSON", where="news.jsonl:7", instead="one JSON object per line"))
    'news.jsonl:7: not valid JSON; instead: one JSON object per line'
    """

    def __init__(self, what: str, *, where: object = "", instead: str = "") -> None:
        self.what, self.where, self.instead = what, str(where), instead
        text = f"{self.where}: {what}" if self.where else what
        super().__init__(f"{text}; instead: {instead}" if instead else text)


@dataclass(frozen=True)
class Span:
    """A labelled stretch of text, linked to a concept when `concept` is set."""

    start: int  # characters, half-open
    end: int
    label: str
    concept: str | None = None  # several ids of one composite mention are joined by ","
    parts: tuple[tuple[int, int], ...] = ()  # characters of each piece, when the mention is discontinuous

    @property
    def concepts(self) -> tuple[str, ...]:
        """The ids of `concept`; none for a mention that is not linked."""
        return tuple(self.concept.split(",")) if self.concept else ()


@dataclass(frozen=True)
class Relation:
    """A typed link between two concepts (or spans), in the direction head → tail."""

    head: str
    label: str
    tail: str
    score: float = 1.0


@dataclass(frozen=True)
class Example:
    """One document or paragraph: gold and prediction have the same shape, so nothing converts."""

    text: str
    spans: tuple[Span, ...] = ()
    relations: tuple[Relation, ...] = ()
    summary: str = ""
    label: str = ""
    id: str = ""
    group: str = ""  # examples of one group never straddle train and test; "" means the id
    language: str = ""  # ISO 639-1, "" when unknown
    source: str = ""  # name of the source in the task file


@dataclass(frozen=True)
class Sequence:
    """One pass through the model: at most `context` tokens cut from one example, positions from 0."""

    ids: tuple[int, ...]  # token ids; the first is the prefix token, never predicted
    bytes: int  # UTF-8 bytes of the text that ids[1:] spell
    group: str  # document it was cut from: the unit of the bootstrap
    slice: str = ""  # what the report shows separately, e.g. "finance-zh"
    label: str = ""
    offsets: tuple[tuple[int, int], ...] = ()  # of each token: its characters in the example; (0, 0) for the prefix
    tags: tuple[int, ...] = ()  # of each token: what a tagger should say (`data.bio`)
    hints: tuple[int, ...] = ()  # of each token: what a gazetteer says (`Gazetteer.hints`)

    @cached_property
    def digest(self) -> str:
        """Key of the activations: SHA-256 of the ids as little-endian int32, first 32 hex digits."""
        return sha256(array("i", self.ids).tobytes()).hexdigest()[:32]
