"""Glossary terms found in running text: leftmost, longest, disjoint, with the character offsets of the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unicodedata import combining

from ahocorasick_rs import AhoCorasick

from domainkit.glossary import Glossary, Term, is_chinese


@dataclass(frozen=True)
class Match:
    """One occurrence of a term."""

    start: int  # characters, half-open
    end: int
    term: Term
    form: str  # as the glossary writes it; the text may have capitals where it has none

    @property
    def translation(self) -> str:
        """The standard term in the other language."""
        return self.term.en if is_chinese(self.form) else self.term.zh[0]


class Matcher:
    """Finds the terms of a glossary.

    An English form is found only between characters that are no part of a word (letters, digits and "_" are,
    Chinese characters are not); an all-lower-case one in any case ("Delinquency"), one with a capital only as it
    stands ("GDP"). A Chinese form is found anywhere; where it begins or ends in Latin ("A股"), as English there.
    """

    def __init__(self, glossary: Glossary) -> None:
        forms = [(form, term) for term in glossary.terms for form in term.forms]
        self._exact = _Automaton([(form, term) for form, term in forms if not _folds(form)])
        self._folded = _Automaton([(form, term) for form, term in forms if _folds(form)])

    def find(self, text: str) -> list[Match]:
        """The matches in `text`, in order. Of two that overlap the earlier one counts, then the longer one."""
        found = self._exact.find(text, 0) + self._folded.find(_lower(text), 1)
        found.sort()
        matches, free = [], 0  # the characters from `free` on belong to no match yet
        for start, minus_end, folded, number in found:
            if start < free:
                continue
            # A form refused here hides nothing: "net interest margins" still holds "net interest".
            form, term, open_start, open_end = (self._folded if folded else self._exact).entries[number]
            end = -minus_end
            if (open_start or start == 0 or not _in_word(text[start - 1])) and (
                open_end or end == len(text) or not _in_word(text[end])
            ):
                matches.append(Match(start, end, term, form))
                free = end
        return matches


class _Automaton:
    """All occurrences of many forms, overlapping ones too."""

    def __init__(self, forms: Sequence[tuple[str, Term]]) -> None:
        # Whether a word character may stand before and after the form.
        self.entries = [(form, term, *_open(form)) for form, term in forms]
        self._search = AhoCorasick([form for form, _ in forms]) if forms else None

    def find(self, text: str, rank: int) -> list[tuple[int, int, int, int]]:
        """(start, -end, rank, number of the form): sorted, the leftmost longest comes first."""
        if self._search is None:
            return []
        found = self._search.find_matches_as_indexes(text, overlapping=True)
        return [(start, -end, rank, number) for number, start, end in found]


@dataclass(frozen=True)
class Coverage:
    """How much of a corpus a glossary knows, and how much of the glossary occurs in it."""

    documents: int
    characters: int
    covered: int  # characters that belong to a match
    terms: Counter[str]  # term id → matches

    @property
    def found(self) -> int:
        """Matches in the whole corpus."""
        return self.terms.total()


def measure(matcher: Matcher, texts: Iterable[str]) -> Coverage:
    """The coverage of a corpus."""
    documents = characters = covered = 0
    terms: Counter[str] = Counter()
    for text in texts:
        matches = matcher.find(text)
        documents, characters = documents + 1, characters + len(text)
        covered += sum(match.end - match.start for match in matches)
        terms.update(match.term.id for match in matches)
    return Coverage(documents, characters, covered, terms)


def inline(text: str, matches: Iterable[Match]) -> str:
    """`text` with every translation behind its term: "逾期 (delinquency)"."""
    parts, done = [], 0
    for match in matches:
        parts += [text[done : match.end], f" ({match.translation})"]
        done = match.end
    return "".join((*parts, text[done:]))


def _folds(form: str) -> bool:
    """Whether a form is found in any case."""
    return form == form.lower() and not is_chinese(form)


def _lower(text: str) -> str:
    """Lower case, character by character: İ is the only one that becomes two, so it takes another letter's place."""
    return text.replace("İ", "ı").lower()


def _open(form: str) -> tuple[bool, bool]:
    """Whether a word may run into the form's start and out of its end: only where it is Chinese."""
    chinese = is_chinese(form)
    return chinese and not _in_word(form[0]), chinese and not _in_word(form[-1])


def _in_word(char: str) -> bool:
    """Whether a character belongs to a word in a language that has spaces."""
    return (char.isalnum() or char == "_" or combining(char) != 0) and not is_chinese(char)
