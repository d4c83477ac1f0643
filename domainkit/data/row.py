"""A document as every reader finds it: a row of plain fields, checked here, then an `Example`.

The fields are those of a JSONL line: text, id, label, group, language, source and summary are strings;
`spans` is a list of {"start", "end", "label", "concept", "parts", "text"} and `relations` one of {"head", "label",
"tail", "score"}. Offsets count characters (Unicode code points, as Python does), half-open; a span's "text" is the
mention as the file states it, and must be what stands there.

What gold annotation may look like, in every format:

- Nested and overlapping spans are lawful and kept; `domainkit.data.overlaps` counts them. The same stretch with the
  same label twice is a fault: it would count twice in every score.
- A discontinuous mention is one span from its first to its last character; `parts` keeps the pieces.
- A composite mention ("renal and hepatic failure") is one span whose `concept` joins its ids by ",".
- A relation names its arguments by concept id, or by "start:end" where the mention is not linked. Arguments that are
  annotated nowhere, and a relation stated twice, are faults.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from domainkit.data.faults import SHOWN_GOLD, Faults
from domainkit.types import Example, Relation, Span

TEXTS = ("text", "id", "label", "group", "language", "summary")  # other keys are ignored
KEYS = (*TEXTS, "source", "spans", "relations")
_HUGE = 1e300  # no score; NaN is not below it either
_NAMES = ("id", "label", "group")  # may also be whole numbers in the file

Fields = Mapping[str, Any]
Problem = tuple[str, str]  # what, instead


@dataclass(frozen=True)
class Row:
    """One document of a file, not yet checked."""

    number: int  # line (or row, or document) of the file, from 1
    fields: Fields
    spans: Sequence[int] = ()  # the line of each span, for formats that give it one
    relations: Sequence[int] = ()
    beside: Path | None = None  # the file of those lines, if it is another one


@dataclass(frozen=True)
class Allowed:
    """The labels that gold annotation may use; empty: any."""

    labels: Collection[str] = field(default_factory=frozenset)  # of spans
    relations: Collection[str] = field(default_factory=frozenset)


def check(row: Row, file: Path, faults: Faults, allowed: Allowed) -> bool:
    """Add what is wrong with a row to `faults`, each with its line; True when nothing is."""
    before = len(faults.found) + faults.more
    for what, instead in _text_problems(row.fields):
        faults.add(what, f"{file}:{row.number}", instead)
    spans, relations = row.fields.get("spans"), row.fields.get("relations")
    if spans is not None or relations is not None:
        faults.shown = SHOWN_GOLD
        if len(faults.found) + faults.more == before:  # the text is sound
            _check_gold(row, file, faults, allowed)
    return len(faults.found) + faults.more == before


def example(row: Row) -> Example:
    """The `Example` of a row that `check` found sound."""
    fields = row.fields
    source = fields.get("source")
    return Example(
        text=fields["text"],
        spans=tuple(
            Span(s["start"], s["end"], s["label"], s.get("concept"), tuple(map(tuple, s.get("parts") or ())))
            for s in fields.get("spans") or ()
        ),
        relations=tuple(
            Relation(r["head"], r["label"], r["tail"], 1.0 if r.get("score") is None else float(r["score"]))
            for r in fields.get("relations") or ()
        ),
        summary=fields.get("summary") or "",
        label=_string(fields.get("label")),
        id=_string(fields.get("id")),
        group=_string(fields.get("group")),
        language=fields.get("language") or "",
        source=source if isinstance(source, str) else "",
    )


def argument_names(span: Span) -> tuple[str, ...]:
    """How relations call a span: its concept ids, or "start:end" if it is not linked."""
    return span.concepts or (f"{span.start}:{span.end}",)


def _string(value: str | int | None) -> str:
    return "" if value is None else str(value)


def _text_problems(fields: Fields) -> Iterator[Problem]:
    """What is wrong with the strings of one row."""
    if "text" not in fields:
        yield f"no key 'text', found {sorted(fields)[:8]}", 'an object such as {"text": "…"}'
    for key in TEXTS:
        value = fields.get(key)
        number = key in _NAMES and isinstance(value, int) and not isinstance(value, bool)
        absent = value is None and (key != "text" or key not in fields)
        if not (isinstance(value, str) or number or absent):
            yield f"{key!r} is {type_name(value)}, not a string", f"put the value of {key!r} in quotes"
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                what = f"{key!r} holds half a surrogate pair at character {error.start}"
                yield what, "write the whole character"


def type_name(value: object) -> str:
    """The JSON type of a value, in words."""
    names = {"NoneType": "null", "dict": "an object", "list": "an array", "bool": "a truth value", "str": "a string"}
    return names.get(type(value).__name__, "a number")


def _check_gold(row: Row, file: Path, faults: Faults, allowed: Allowed) -> None:
    text, named = row.fields["text"], set[str]()
    seen: dict[tuple[int, int, str], str] = {}
    for kind, lines in (("spans", row.spans), ("relations", row.relations)):
        values = row.fields.get(kind)
        values = () if values is None else values
        if not isinstance(values, list | tuple):
            faults.add(f"{kind!r} is {type_name(values)}, not an array", f"{file}:{row.number}", f'"{kind}": []')
            values = ()
        said = set[tuple[str, str, str]]()
        for i, value in enumerate(values):
            where = f"{row.beside or file}:{lines[i]}" if lines else f"{file}:{row.number}, {kind}[{i + 1}]"
            if kind == "spans":
                problems = [*_span_problems(value, text, allowed), *_twice(value, where, seen)]
                named.update(_names(value))  # also of a faulty span: one fault is enough
            else:
                problems = list(_relation_problems(value, named, said, allowed))
            for what, instead in problems:
                faults.add(what, where, instead)


def _span_problems(span: Any, text: str, allowed: Allowed) -> Iterator[Problem]:
    like = '{"start": 0, "end": 9, "label": "Chemical"}'
    if not isinstance(span, dict):
        yield f"{type_name(span)}, not an object", like
        return
    start: Any = span.get("start")
    end: Any = span.get("end")
    concept = span.get("concept")
    yield from _label_problems(span.get("label"), allowed.labels, "label")
    if concept is not None and not (isinstance(concept, str) and all(map(str.strip, concept.split(",")))):
        yield f"concept {concept!r} is not an id", "ids joined by ',', or null for none"
    if not (_whole(start) and _whole(end)):
        yield f"start {start!r} and end {end!r} are not both whole numbers", like
    elif not 0 <= start < end <= len(text):
        reason = "is empty or runs backwards" if end <= start else f"lies outside the text of {len(text)} characters"
        yield f"span {start}-{end} {reason}", "0 ≤ start < end ≤ length, in characters, half-open"
    elif problem := _parts_problem(span.get("parts") or (), start, end):
        yield problem, "pieces [[start, end], …] in order, from the span's start to its end"
    elif span.get("text") is not None:
        yield from _mention_problems(span, text)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parts_problem(parts: Any, start: int, end: int) -> str:
    if not isinstance(parts, list | tuple) or not all(
        isinstance(part, list | tuple) and len(part) == 2 and all(map(_whole, part)) for part in parts
    ):
        return "parts are not pairs of whole numbers"
    bounds = [bound for part in parts for bound in part]
    if parts and (bounds[0] != start or bounds[-1] != end or any(a >= b for a, b in pairwise(bounds))):
        return f"parts {list(map(list, parts))} do not make up the span {start}-{end}"
    return ""


def _mention_problems(span: Fields, text: str) -> Iterator[Problem]:
    """The mention that the file states must stand in the text, piece by piece; a line break may be told as a space."""
    stated, start, end = span["text"], span["start"], span["end"]
    there = " ".join(text[a:b] for a, b in span.get("parts") or ((start, end),))
    if stated not in (there, there.replace("\r\n", " ").replace("\n", " "), there.replace("\n", " ")):
        yield f"the text at {start}-{end} is {_short(there)}, not {_short(stated)}", _unit(text, stated, start, end)


def _short(text: object) -> str:
    return repr(text) if len(repr(text)) <= 80 else repr(text)[:76] + " …'"


def _unit(text: str, stated: object, start: int, end: int) -> str:
    """The remedy, if the offsets turn out to count something else than characters."""
    for encoding, size, name in (("utf-8", 1, "UTF-8 bytes"), ("utf-16-le", 2, "UTF-16 units")):
        if text.encode(encoding)[start * size : end * size].decode(encoding, "ignore") == stated:
            return f"count characters; these offsets count {name}"
    return "mend the mention, or its offsets: characters (code points) from the beginning of the text"


def _twice(span: Any, where: str, seen: dict[tuple[int, int, str], str]) -> Iterator[Problem]:
    """`seen`: (start, end, label) → where it was stated first."""
    key: Any = tuple(span.get(part) for part in ("start", "end", "label")) if isinstance(span, dict) else ()
    if not key or not all(isinstance(part, int | str) for part in key):
        return
    if key in seen:
        yield f"span {key[0]}-{key[1]} {key[2]} is annotated twice, first at {seen[key]}", "join its concept ids by ','"
    else:
        seen[key] = where


def _names(span: Any) -> tuple[str, ...]:
    if not isinstance(span, dict):
        return ()
    concept = span.get("concept")
    return argument_names(
        Span(span.get("start", 0), span.get("end", 0), "", concept if isinstance(concept, str) else None)
    )


def _relation_problems(
    relation: Any, named: Collection[str], said: set[tuple[str, str, str]], allowed: Allowed
) -> Iterator[Problem]:
    """`named`: what relations of this document may link. `said`: those before it; it is added."""
    like = '{"head": "D008012", "label": "CID", "tail": "D006323"}'
    if not isinstance(relation, dict):
        yield f"{type_name(relation)}, not an object", like
        return
    key: Any = tuple(relation.get(part) for part in ("head", "label", "tail"))
    yield from _label_problems(key[1], allowed.relations, "relation")
    score = relation.get("score")
    if score is not None and not (isinstance(score, int | float) and abs(score) < _HUGE):
        yield f"score {str(score)[:20]!r} is not a number", "a number, or no score"
    for argument in (key[0], key[2]):
        if not (isinstance(argument, str) and argument):
            yield f"argument {argument!r} of a relation is not a name", like
        elif argument not in named:
            yield (
                f"relation argument {argument!r} is annotated nowhere in the document",
                "the concept id of an annotated mention (start:end of one without)",
            )
    if all(isinstance(part, str) for part in key):
        if key in said:
            yield f"relation {' '.join(key)} is stated twice", "once for each pair"
        said.add(key)


def _label_problems(label: object, known: Collection[str], name: str) -> Iterator[Problem]:
    if not (isinstance(label, str) and label.strip()):
        yield f"{name} {label!r} is not a name", "a label such as 'Chemical'"
    elif known and label not in known:
        close = get_close_matches(label, known, n=1)
        every = f"one of {sorted(known)}"
        yield f"unknown {name} {label!r}", f"{close[0]!r} ({every})" if close else every
