"""BRAT standoff (brat.nlplab.org/standoff.html): NAME.txt holds the text, NAME.ann beside it the annotation.

    T1  Chemical 0 9        Lidocaine
    T2  Disease 18 24;33 41 severe asystole
    N1  Reference T1 MeSH:D008012   lidocaine
    R1  Induces Arg1:T1 Arg2:T2

Tabs part the columns. Offsets count the characters of NAME.txt, line ends as they are in the file.

- A discontinuous mention ("18 24;33 41") becomes one span, 18 to 41, with the pieces in `parts`. Pieces with nothing
  but space between them are how BRAT writes a mention that goes over a line's end; they are kept as well.
- N lines give a mention its concept id, resource and all ("MeSH:D008012"); several of them make it a composite one.
- A relation links the concept ids of its two mentions, in the order of the line, or their "start:end" where they have
  none. It holds for the document, so many relations between mentions may be one here.
- Comments (#), events (E), attributes (A, M) and equivalences (*) have no place in an `Example`: they are counted,
  and the count is told.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from domainkit.data.faults import SHOWN_GOLD, Faults
from domainkit.data.lines import read_lines, read_text
from domainkit.data.row import Row, argument_names
from domainkit.types import Span

_PATTERNS = {
    "T": re.compile(r"(\S+) (-?\d{1,18} -?\d{1,18}(?:;-?\d{1,18} -?\d{1,18})*)", re.ASCII),
    "R": re.compile(r"(\S+) [^\s:]+:(\S+) [^\s:]+:(\S+)"),
    "N": re.compile(r"\S+ (\S+) (\S+:\S+)"),
}
_LIKE = {
    "T": "T1, tab, Chemical 0 9, tab, Lidocaine",
    "R": "R1, tab, Induces Arg1:T1 Arg2:T2",
    "N": "N1, tab, Reference T1 MeSH:D008012, tab, lidocaine",
}
_OTHER = {"#": "comments", "E": "events", "A": "attributes", "M": "attributes", "*": "equivalences"}

Problem = tuple[str, str]  # what, instead


@dataclass
class _Marks:
    """What the .ann file says, each with its line."""

    mentions: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # by T id
    links: list[tuple[int, str, str]] = field(default_factory=list)  # T id, concept id
    relations: list[tuple[int, str, str, str]] = field(default_factory=list)  # label, T id, T id


def rows(file: Path, faults: Faults) -> Iterator[Row]:
    """The one document of a pair; `file` is either of the two."""
    faults.shown = SHOWN_GOLD
    texts, marked = file.with_suffix(".txt"), file.with_suffix(".ann")
    for one, other in ((texts, marked), (marked, texts)):
        if not one.is_file():
            remedy = "the text" if one is texts else "an empty file if nothing is annotated"
            faults.add(f"no {one.name} beside it", other, remedy)
            return
    text = read_text(texts, faults)
    if text is None:
        return
    if not text.strip():
        faults.add("the document is empty", texts, "a text")
        return
    marks = _Marks()
    for number, line in read_lines(marked, faults):
        if not line.strip():
            continue
        if line[0] in _OTHER:
            faults.passed[_OTHER[line[0]]] += 1
        elif problem := _mark(number, line, marks):
            faults.add(problem[0], f"{marked}:{number}", problem[1])
    yield _row(text, marks, marked, faults)


def _mark(number: int, line: str, marks: _Marks) -> Problem | None:
    """Add one line to `marks`, or say what is wrong with it and what to do."""
    name, *cells = line.split("\t")
    kind = name[0]
    if kind not in _LIKE:
        return f"a line of an unknown kind, {name[:20]!r}", f"one of {', '.join([*_LIKE, *_OTHER])}"
    found = _PATTERNS[kind].fullmatch(cells[0].strip()) if cells else None
    if not found or (kind == "T" and len(cells) != 2):
        return f"the {kind} line is cut off or has another form", _LIKE[kind]
    if kind == "R":
        marks.relations.append((number, found[1], found[2], found[3]))
    elif kind == "N":
        marks.links.append((number, found[1], found[2]))
    elif name in marks.mentions:
        return f"{name} is given twice, first at line {marks.mentions[name][0]}", "an id of its own for each mention"
    else:
        parts = [tuple(map(int, piece.split())) for piece in found[2].split(";")]
        span = {"label": found[1], "start": parts[0][0], "end": parts[-1][1], "text": cells[1]}
        marks.mentions[name] = number, span | {"parts": parts if len(parts) > 1 else ()}
    return None


def _row(text: str, marks: _Marks, marked: Path, faults: Faults) -> Row:
    concepts: dict[str, list[str]] = defaultdict(list)
    for number, name, concept in marks.links:
        if name not in marks.mentions:
            faults.add(f"{name} is linked to {concept} but annotated nowhere", f"{marked}:{number}", "a T line for it")
        elif concept not in concepts[name]:
            concepts[name].append(concept)
    for name, (_, span) in marks.mentions.items():
        span["concept"] = ",".join(concepts[name]) or None
    spans = sorted(marks.mentions.values(), key=lambda mention: (mention[1]["start"], -mention[1]["end"]))
    relations: dict[tuple[str, str, str], int] = {}
    for number, label, *names in marks.relations:
        unknown = [name for name in names if name not in marks.mentions]
        for name in unknown:
            faults.add(f"relation argument {name} is annotated nowhere", f"{marked}:{number}", "a T line for it")
        if not unknown:
            heads, tails = (_arguments(marks.mentions[name][1]) for name in names)
            for head, tail in product(heads, tails):
                relations.setdefault((head, label, tail), number)
    fields = {
        "text": text,
        "spans": [span for _, span in spans],
        "relations": [{"head": head, "label": label, "tail": tail} for head, label, tail in relations],
    }
    return Row(1, fields, [number for number, _ in spans], list(relations.values()), marked)


def _arguments(span: dict[str, Any]) -> tuple[str, ...]:
    return argument_names(Span(span["start"], span["end"], span["label"], span["concept"]))
