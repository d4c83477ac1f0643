"""Documents as a report shows them: what gold and the prediction mark in the text, and where the two part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from domainkit.align import align, same
from domainkit.types import Example, Span

STATES = {  # state of a mark → what it means, for people
    "right": "gold and prediction agree",
    "missed": "gold, where nothing is predicted",
    "spurious": "predicted, where gold has nothing",
    "wrong": "predicted with other bounds or another label than gold",
    "gold": "what gold has instead of a wrong one",
    "mislinked": "rightly found, but linked to another concept than gold",
}
ERRORS = ("missed", "spurious", "wrong", "mislinked")  # "gold" is the other half of "wrong"
SIZE = 1_500  # characters of a passage at most
AROUND = 150  # characters of context before the first error shown, and how far a cut is moved to the next space
TOLD, SHORT = 5, 60  # errors told in words, characters of each


@dataclass(frozen=True)
class Mark:
    """A stretch of a passage that gold or the prediction calls an entity."""

    start: int  # characters of the passage, half-open
    end: int
    label: str
    state: str  # a key of STATES
    concept: str = ""  # ids joined by ","; "" for none
    gold_concept: str = ""  # what gold has instead, for "mislinked"

    @property
    def name(self) -> str:
        """What stands beside the mark: its label, after its state unless it is right."""
        return self.label if self.state == "right" else f"{self.state} {self.label}"

    @property
    def hint(self) -> str:
        """What is shown on hovering: the name, and the concept where there is one."""
        concept = f"{self.concept}, not {self.gold_concept}" if self.gold_concept else self.concept
        return f"{self.name}: {concept}" if concept else self.name


@dataclass(frozen=True)
class Passage:
    """A document, or the stretch of it with most errors, with its marks in the order of the text."""

    title: str
    text: str
    marks: tuple[Mark, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a mark that lies outside the text or is in no known state."""
        for mark in self.marks:
            if not (0 <= mark.start < mark.end <= len(self.text) and mark.state in STATES):
                raise ValueError(f"{mark} in a passage of {len(self.text)} characters")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Passage:
        """A passage from the dictionary that `dataclasses.asdict` makes of it."""
        return cls(**{**values, "marks": tuple(Mark(**mark) for mark in values["marks"])})

    @property
    def errors(self) -> tuple[Mark, ...]:
        """The marks where gold and prediction part."""
        return tuple(mark for mark in self.marks if mark.state in ERRORS)

    def pieces(self) -> list[tuple[str, tuple[Mark, ...], tuple[Mark, ...]]]:
        """The text cut wherever a mark begins or ends, as marks may overlap: text, marks over it, marks ending there.

        The longer of two marks over a piece comes first.
        """
        bounds = sorted({0, len(self.text), *(m.start for m in self.marks), *(m.end for m in self.marks)})
        longest_first = sorted(self.marks, key=lambda mark: (mark.start - mark.end, mark.start))
        return [
            (
                self.text[start:end],
                tuple(mark for mark in longest_first if mark.start <= start and end <= mark.end),
                tuple(mark for mark in self.marks if mark.end == end),
            )
            for start, end in pairwise(bounds)
        ]

    def told(self) -> str:
        """The errors in words, for where text cannot be marked."""
        found = [f"{mark.hint} “{_short(self.text[mark.start : mark.end])}”" for mark in self.errors]
        more = f"; and {len(found) - TOLD} more" if len(found) > TOLD else ""
        return "; ".join(found[:TOLD]) + more or "none"


def passages(gold: Sequence[Example], predicted: Sequence[Example], limit: int = 20) -> tuple[Passage, ...]:
    """At most `limit` documents in which something is marked, those with most errors first.

    gold, predicted: the same documents in the same order. A text beyond SIZE characters is cut to the stretch with
    most errors. Raises ValueError when the two differ in number or a span lies outside its text.
    """
    found = []
    for i, (ours, theirs) in enumerate(zip(gold, predicted, strict=True)):
        title = ours.id or ours.group or f"document {i + 1}"
        found.append(Passage(title, ours.text, tuple(_marks(ours.spans, theirs.spans))))
    marked = sorted((one for one in found if one.marks), key=lambda one: -len(one.errors))
    return tuple(_cut(one) for one in marked[:limit])


def palette(shown: Iterable[Passage], colours: int) -> dict[str, int]:
    """Label → number of its colour, in the order of the labels; colours are used again when there are too few."""
    labels = sorted({mark.label for passage in shown for mark in passage.marks})
    return {label: i % colours for i, label in enumerate(labels)}


def _marks(gold: Iterable[Span], predicted: Iterable[Span]) -> list[Mark]:
    """What to mark in a document, in the order of the text."""
    marks = []
    for ours, theirs in align(gold, predicted):
        if ours and theirs and same(ours, theirs):
            marks.append(_agreed(ours, theirs))
        else:
            if ours:
                marks.append(_mark(ours, "gold" if theirs else "missed"))
            if theirs:
                marks.append(_mark(theirs, "wrong" if ours else "spurious"))
    return sorted(marks, key=lambda mark: (mark.start, mark.end, mark.label))


def _agreed(gold: Span, predicted: Span) -> Mark:
    if predicted.concepts and gold.concepts and not {*predicted.concepts} <= {*gold.concepts}:
        return replace(_mark(predicted, "mislinked"), gold_concept=",".join(gold.concepts))
    return _mark(predicted, "right")


def _mark(span: Span, state: str) -> Mark:
    return Mark(span.start, span.end, span.label, state, span.concept or "")


def _cut(passage: Passage) -> Passage:
    """At most SIZE characters of a passage, with "…" where some are left out; a mark across a cut is shortened."""
    text, room = passage.text, SIZE - 2  # for "…" at both ends
    if len(text) <= SIZE:
        return passage
    first = max(0, min(_start(passage, room), len(text) - room))
    if first:
        space = text.find(" ", first, first + AROUND)
        first = space + 1 if space >= 0 and not _cuts_error(passage, first, space + 1) else first
    last = min(first + room, len(text))
    if last < len(text):
        space = text.rfind(" ", last - AROUND, last)
        last = space if space >= 0 and not _cuts_error(passage, space, last) else last
    lead = "…" if first else ""
    marks = tuple(
        replace(m, start=max(m.start, first) - first + len(lead), end=min(m.end, last) - first + len(lead))
        for m in passage.marks
        if m.start < last and m.end > first
    )
    return Passage(passage.title, lead + text[first:last] + ("…" if last < len(text) else ""), marks)


def _start(passage: Passage, room: int) -> int:
    """Where the stretch of `room` characters begins that shows most errors; 0 without any."""
    starts = [mark.start - AROUND for mark in passage.errors]
    shown = [sum(start <= e.start and e.end <= start + room for e in passage.errors) for start in starts]
    return starts[shown.index(max(shown))] if starts else 0


def _cuts_error(passage: Passage, start: int, end: int) -> bool:
    """Whether an error has characters between start and end: a cut must not be moved over it."""
    return any(mark.start < end and mark.end > start for mark in passage.errors)


def _short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 2] + " …"
