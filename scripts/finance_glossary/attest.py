"""How often forms occur in text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from finance_glossary.normal import is_chinese

_WORD = re.compile(r"[A-Za-z0-9&]+(?:['’-][A-Za-z0-9]+)*|[^\sA-Za-z0-9]")
_HAN = re.compile(r"[A-Z0-9]*[\u4e00-\u9fff][\u4e00-\u9fffA-Z0-9]*")


@dataclass(frozen=True)
class Counts:
    """By form, English in lower case."""

    total: Mapping[str, int]
    documents: Mapping[str, int]
    surface: Mapping[str, str] = field(default_factory=dict)  # the spelling met most often, English only

    def of(self, form: str) -> int:
        return self.total.get(key(form), 0)

    def docs(self, form: str) -> int:
        return self.documents.get(key(form), 0)


def key(form: str) -> str:
    return form if is_chinese(form) else " ".join(_WORD.findall(form.replace("’", "'").lower()))


def english(texts: Iterable[str], forms: Iterable[str]) -> Counts:
    """Whole words, whatever their case; forms inside longer ones count too."""
    longest: dict[str, int] = defaultdict(int)
    wanted = {key(form) for form in forms}
    for form in wanted:
        parts = form.split(" ")
        longest[parts[0]] = max(longest[parts[0]], len(parts))
    total: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    surface: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        words = _WORD.findall(text.replace("’", "'"))
        lower = [word.lower() for word in words]
        found: Counter[str] = Counter()
        for at, word in enumerate(lower):
            for size in range(1, longest.get(word, 0) + 1):
                form = " ".join(lower[at : at + size])
                if form in wanted:
                    found[form] += 1
                    surface[form][" ".join(words[at : at + size])] += 1
        total.update(found)
        documents.update(found.keys())
    best = {form: min(seen, key=lambda one: (-seen[one], one)) for form, seen in surface.items()}
    return Counts(total, documents, best)


def chinese(texts: Iterable[str], forms: Iterable[str]) -> Counts:
    """Wherever the characters stand; forms inside longer ones count too."""
    wanted = set(forms)
    longest: dict[str, int] = defaultdict(int)
    for form in wanted:
        longest[form[:2]] = max(longest[form[:2]], len(form))
    total: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for text in texts:
        found: Counter[str] = Counter()
        for match in _HAN.finditer(text):
            run = match[0]
            for at in range(len(run) - 1):
                for size in range(2, longest.get(run[at : at + 2], 0) + 1):
                    if (form := run[at : at + size]) in wanted and len(form) == size:
                        found[form] += 1
        total.update(found)
        documents.update(found.keys())
    return Counts(total, documents)
