"""What is known about forms: how often text has them, in which spelling, and what other lists say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from finance_glossary import attest, normal, sources
from finance_glossary.align import Aligner
from finance_glossary.corpus import Corpus
from finance_glossary.sources import Pair

FOLDER = Path(__file__).parent
PREFIX = r"\b(non|re|co|pre|sub)"


@dataclass(frozen=True)
class Evidence:
    """About every form of the pairs and of the entries by hand."""

    en: attest.Counts
    zh: attest.Counts
    general: attest.Counts  # Chinese statutes outside finance
    words: Mapping[str, int]  # document frequency of Chinese finance words elsewhere
    classes: frozenset[str]  # English names in the finance ontology
    abbreviations: Mapping[str, str]
    aligner: Aligner
    generic: frozenset[str]
    keep: frozenset[str]  # common single words that are finance vocabulary
    countable: frozenset[str]  # single words whose plural means the same

    @classmethod
    def gather(cls, pairs: list[Pair], corpus: Corpus, terms: Path, more: Iterable[str]) -> Evidence:
        """Count every form of every pair, and `more` forms; `terms` is the folder of the other lists."""
        forms = {form for pair in pairs for form in (pair.en, *pair.zh)} | set(more)
        english = {other for form in forms if not normal.is_chinese(form) for other in spellings(form)}
        chinese = {other for form in forms if normal.is_chinese(form) for other in old_forms(form)}
        return cls(
            en=attest.english(corpus.en, english),
            zh=attest.chinese(corpus.zh, chinese),
            general=attest.chinese(corpus.general_zh, chinese),
            words=sources.thuocl(terms),
            classes=sources.fibo(terms),
            abbreviations=abbreviations(corpus.en),
            aligner=Aligner.fit((pair.en, zh) for pair in pairs for zh in pair.zh),
            generic=word_list("generic.txt"),
            keep=word_list("keep.txt"),
            countable=word_list("countable.txt"),
        )

    def of_pairs(self, pairs: Iterable[Pair]) -> Evidence:
        """The same without what was counted for others: so candidates do not change with the entries by hand."""
        known = {attest.key(form) for pair in pairs for form in spellings(pair.en)}
        english = (self.en.total, self.en.documents, self.en.surface)
        return replace(self, en=attest.Counts(*({f: n for f, n in one.items() if f in known} for one in english)))

    def attested_zh(self, zh: str) -> float:
        """Occurrences in finance text, others at a discount."""
        return self.zh.of(zh) + 0.3 * self.general.of(zh) + (2 if zh in self.words else 0)

    def attested_en(self, en: str) -> int:
        return sum(self.en.of(form) for form in spellings(en))

    def attested(self, forms: Iterable[str]) -> bool:
        """Whether finance text, English or Chinese, has one of the forms."""
        return any((self.zh if normal.is_chinese(form) else self.en).of(form) for form in forms)


def word_list(name: str) -> frozenset[str]:
    """The lines of a list that are neither empty nor a comment."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


@cache
def spellings(en: str) -> tuple[str, ...]:
    """The term, its plurals, and the same with hyphens set otherwise."""
    joined = dict.fromkeys((en, re.sub(r"-(?! )", " ", en), re.sub(rf"{PREFIX}[- ](?=[a-z]{{3}})", r"\1", en)))
    if "-" not in en:
        joined |= dict.fromkeys((re.sub(rf"{PREFIX}(?=[a-z]{{4}})", r"\1-", en),))
    if len(en.split()) == 3 and " of " not in en:
        joined |= dict.fromkeys((re.sub(r"^(\w+) (\w+) ", r"\1-\2 ", en),))
    plural = []
    for form in joined:
        head, of, rest = form.partition(" of ")
        *front, last = (head if of else form).split()
        plural.append(" ".join([*front, normal.plural(last)]) + of + rest)
    return tuple(dict.fromkeys((*joined, *plural)))


def old_forms(zh: str) -> tuple[str, ...]:
    """The form, and as older statutes may spell it."""
    return tuple(dict.fromkeys((zh, zh.replace("账", "帐"), zh.replace("其他", "其它"))))


_INTRODUCED = re.compile(r"((?:[A-Za-z][\w'-]*[ -]){2,9})\(([A-Z][A-Z&]{1,6})s?\)")


def abbreviations(texts: Iterable[str]) -> dict[str, str]:
    """Abbreviation of each term, in lower case, that texts introduce with it in brackets at least twice."""
    seen: Counter[tuple[str, str]] = Counter()
    for text in texts:
        for words, short in _INTRODUCED.findall(" ".join(text.split())):
            if long := _spelled_out(words.split(), short.lower()):
                seen[long, short] += 1
    owners = Counter(short for (_, short), count in seen.items() if count > 1)
    best: dict[str, str] = {}
    for (long, short), count in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        if count > 1 and owners[short] == 1:
            best.setdefault(long, short)
    return best


def _spelled_out(words: list[str], short: str) -> str:
    """The last words whose initials are `short`, "" if none are."""
    for size in range(2, len(words) + 1):
        long = words[-size:]
        initials = "".join(piece[0] for word in long for piece in word.split("-") if piece).lower()
        if short in (initials, re.sub("[oatf]", "", initials)):  # "of", "and", "the", "for" may not count
            return " ".join([*long[:-1], normal.singular(long[-1])]).lower()
    return ""
