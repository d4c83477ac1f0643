"""What a document itself says of its mentions: abbreviations it defines, other names it gives in brackets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from domainkit.types import Example, Span

_BRACKETS = re.compile(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_SENTENCE = re.compile(r"[.!?;:]\s|\n")  # what stands before it defines nothing after it
_FIRST = re.compile(r"[;,]\s| or | and ")  # "(MI, see below)"
_LONGEST, _WORDS = 10, 2  # characters and words of a short form
_REACH = 400  # characters before a bracket that may hold the long form
_LETTERS = 6  # of an abbreviation that is not defined but stands beside its long form


@dataclass(frozen=True)
class Mention:
    """What is to be linked: all mentions of a document that read alike and have one label."""

    text: str  # as written, with single spaces
    label: str = ""  # entity type, "" when unknown
    long: str = ""  # what it abbreviates, by the document's own words
    other: str = ""  # what it may be another name of


def abbreviations(text: str) -> dict[str, str]:
    """The abbreviations that a text defines, short form → long form, the first definition of each.

    Source: Schwartz and Hearst 2003, "A simple algorithm for identifying abbreviation definitions in biomedical text",
    Pacific Symposium on Biocomputing 8; only their pattern "long form (short form)".

    >>> abbreviations("Myocardial infarction (MI) was rare.")
    {'MI': 'Myocardial infarction'}
    """
    found: dict[str, str] = {}
    for match in _BRACKETS.finditer(text):
        short = _FIRST.split(match[1])[0].strip(" \"'")
        before = _SENTENCE.split(text[max(match.start() - _REACH, 0) : match.start()])[-1].split()
        if 2 <= len(short) <= _LONGEST and len(short.split()) <= _WORDS and short[0].isalnum() and _has_letter(short):
            long = long_form(short, " ".join(before[-min(len(short) + 5, 2 * len(short)) :]))
            if len(long) > len(short) and short not in long.split():
                found.setdefault(short, long)
    return found


def long_form(short: str, before: str) -> str:
    """The shortest end of `before` that has the characters of `short` in their order, the first one beginning a word.

    "" when there is none.
    """
    at = len(before)
    for place in range(len(short) - 1, -1, -1):
        char = short[place].lower()
        if not char.isalnum():
            continue
        at -= 1
        while at >= 0 and (before[at].lower() != char or (place == 0 and at and before[at - 1].isalnum())):
            at -= 1
        if at < 0:
            return ""
    return before[before.rfind(" ", 0, at + 1) + 1 :]


def surface(example: Example, span: Span) -> str:
    """A mention as it is written, its pieces and lines joined by single spaces."""
    return " ".join(" ".join(example.text[a:b] for a, b in span.parts or ((span.start, span.end),)).split())


def mentions(example: Example) -> dict[tuple[str, str], Mention]:
    """All different mentions of a document, (as written, label) → with what the document says of each."""
    spans = sorted(example.spans, key=lambda span: (span.start, span.end))
    found: dict[tuple[str, str], Mention] = {}
    defined, pairs = abbreviations(example.text), dict(_bracketed(example, spans))
    keys = dict.fromkeys((surface(example, span), span.label) for span in spans)
    for text, label in keys:
        letters = _letters(text)
        beside = [other for other, its in keys if letters and its == label and len(other) > len(text) + 2]
        long = expand(text, defined) or _initials(letters, beside)
        other = "" if long else _spelled(letters, beside) or pairs.get((text, label), "")
        found[text, label] = Mention(text, label, long, "" if expand(other, defined) == text else other)
    return found


def expand(text: str, defined: Mapping[str, str]) -> str:
    """What an abbreviation, or its plural, is defined to mean; "" when it is not defined."""
    return defined.get(text) or (defined.get(text[:-1], "") if text.endswith("s") else "")


def _bracketed(example: Example, spans: Iterable[Span]) -> Iterator[tuple[tuple[str, str], str]]:
    """Pairs of mentions like "FK506 (tacrolimus)", either way."""
    for one, two in pairwise(spans):
        between, after = example.text[one.end : two.start].strip(), example.text[two.end : two.end + 1]
        if one.label == two.label and between in ("(", "[") and after in tuple(")],;/"):
            names = surface(example, one), surface(example, two)
            yield (names[0], one.label), names[1]
            yield (names[1], two.label), names[0]


def _initials(letters: str, others: Iterable[str]) -> str:
    """The first mention whose words begin with the letters of an abbreviation, "" when none does."""
    spelled = ((other, re.split(r"[\s-]+", other)) for other in others)
    return next((other for other, words in spelled if "".join(w[:1] for w in words).lower() == letters), "")


def _spelled(letters: str, others: Iterable[str]) -> str:
    """The only mention that has the letters of an abbreviation in their order, "" when none or several have."""
    if len(letters) < 3:
        return ""
    found = {other.lower(): other for other in others if long_form(letters, other) == other}
    return next(iter(found.values())) if len(found) == 1 else ""


def _letters(text: str) -> str:
    """The letters of an abbreviation, without the s of its plural; "" for what looks like none."""
    letters = text.rstrip("s") if len(text) > 3 else text
    typed = 2 <= len(letters) <= _LETTERS and letters.isalpha() and sum(map(str.isupper, letters)) > 1
    return letters.lower() if typed else ""


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))
