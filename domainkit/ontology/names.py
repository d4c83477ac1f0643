"""Aliases as they are compared: what differs in case, accents, hyphens or punctuation only is the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_ASCII = {ord(char): " " for char in map(chr, range(128)) if not char.isalnum()}
_OTHER = re.compile(r"[\W_]+")


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
