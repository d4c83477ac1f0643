"""Aliases as they are compared: what differs in case, accents, hyphens or punctuation only is the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_ASCII = {ord(char): " " for char in map(chr, range(128)) if not char.isalnum()}
_OTHER = re.compile(r"[\W_]+")
_GREEK = {char: unicodedata.name(char).split()[-1].lower() for char in "αβγδεζηθικλμνξοπρςστυφχψω"}
_SMALL = frozenset(("a", "an", "and", "by", "due", "for", "in", "of", "or", "the", "to", "with"))
_SPELLINGS = (("ae", "e"), ("oe", "e"), ("sulph", "sulf"), ("leuc", "leuk"), ("our", "or"))  # British → American
_ENDING = re.compile(r"(?:es|is|s|e)$")  # psychoses and psychosis, diseases and disease


def normal(alias: str) -> str:
    """The form under which an alias is looked up; "" when it has neither letter nor digit.

    >>> normal("Sjögren's  Syndrome"), normal("beta-Blocker")
    ('sjogren s syndrome', 'beta blocker')
    """
    if alias.isascii():
        return " ".join(alias.lower().translate(_ASCII).split())
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", alias).casefold())  # ö is o and a mark, ﬁ is fi
    return _OTHER.sub(" ", "".join(char for char in apart if not unicodedata.combining(char))).strip()


def distinct(name: str, synonyms: Iterable[str]) -> tuple[str, ...]:
    """The synonyms that say something new: no two with the same normal form, none with that of the name."""
    seen = {normal(name), ""}
    return tuple(form for form in synonyms if not (normal(form) in seen or seen.add(normal(form))))  # type: ignore[func-returns-value]


def words(name: str) -> tuple[str, ...]:
    """The words of a name in the order of speech, less what differs from one spelling of it to the next.

    Ignored: what `normal` ignores, plural endings, British spelling, Greek letters against their names, the order of
    an index ("Neoplasms, Oesophageal"), a possessive s, a salt against its acid. What comes out is to be compared, not
    to be read.

    >>> words("Neoplasms, Oesophageal") == words("esophageal neoplasm"), words("Folic Acid") == words("folate")
    (True, True)
    """
    turned, found = name.split(", "), list[str]()
    if 1 < len(turned) < 4:
        name = " ".join(reversed(turned))
    for word in normal(name).split():
        if word in ("acid", "acids") and found and len(found[-1]) > 4 and found[-1].endswith("ic"):
            found[-1] = f"{found[-1][:-2]}at"
        elif word != "s" or not found:  # of Cushing's syndrome
            found.append(_stem(word))
    return tuple(found)


def spellings(words: tuple[str, ...]) -> tuple[str, str]:
    """Two keys under which to look a name up by its `words`: in any order without the small ones, and as one word."""
    return " ".join(sorted(set(words) - _SMALL or set(words))), "".join(words)


@lru_cache(maxsize=1 << 18)
def _stem(word: str) -> str:
    if not word.isascii():
        word = "".join(_GREEK.get(char, char) for char in word)
    if len(word) < 5 or not word.isalpha():
        return word
    for british, american in _SPELLINGS:
        word = word.replace(british, american)
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word if word.endswith(("ss", "us")) else _ENDING.sub("", word)
