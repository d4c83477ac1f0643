"""Frequent cohesive n-grams of the finance corpora, as food for hand-written entries.

    python scripts/finance_glossary/ngrams.py SHARED_DATA_FOLDER OUT_FOLDER [GLOSSARY]

With a glossary, only of the text that its terms leave uncovered.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from domainkit.glossary import Glossary
from finance_glossary import evidence, savings
from finance_glossary.corpus import load
from finance_glossary.costs import costs

LONGEST_ZH, LONGEST_EN, SHOWN = 10, 5, 3000
STOP = evidence.word_list("stop.txt")
# Characters that seldom open or close a term.
EDGE = "的了应和与及或等在由对其并可为不者第将被把向从以自至所该各本此但而则之者已未经按当须得予于是有"
LAST = "的了应和与及或在由对其并可为不第将被把向从以自所该各此但而则之已未经按当须予于是"
_SPLIT = re.compile(r"[^\u4e00-\u9fff]+")
_WORD = re.compile(r"[A-Za-z][A-Za-z&'’-]*|[.,;:()\[\]\"“”\n?!0-9§$%/—–]+")


def chinese(texts: Iterable[str]) -> list[tuple[int, int, int, str]]:
    """(saved, documents, count, n-gram), best first."""
    runs = [[run for run in _SPLIT.split(text) if run] for text in texts]
    counts: Counter[str] = Counter(run for doc in runs for run in "".join(doc))
    singles = sum(counts.values())
    for size in range(2, LONGEST_ZH + 2):  # up to one longer than wanted, for the neighbours
        grams = (run[at : at + size] for doc in runs for run in doc for at in range(len(run) - size + 1))
        counts.update(gram for gram in grams if size < 3 or counts[gram[1:]] > 3)
        for gram in [gram for gram, count in counts.items() if len(gram) == size and count < 4]:
            del counts[gram]
    right: dict[str, list[int]] = defaultdict(list)
    left: dict[str, list[int]] = defaultdict(list)
    for gram, count in counts.items():
        if len(gram) > 2:
            right[gram[:-1]].append(count)
            left[gram[1:]].append(count)
    chosen = []
    for gram, count in counts.items():
        if 2 <= len(gram) <= LONGEST_ZH and count >= 8:
            cohesion = min(
                math.log2(count * singles / (counts[gram[:cut]] * counts[gram[cut:]])) for cut in range(1, len(gram))
            )
            freedom = min(_entropy(left[gram], count), _entropy(right[gram], count))
            edges = gram[0] in EDGE or gram[-1] in LAST
            if cohesion > 2.5 and freedom > 1.2 and not edges:
                chosen.append(gram)
    documents = Counter(gram for doc in runs for gram in _distinct(doc, set(chosen)))
    saved = {gram: (cost_ - 1) * counts[gram] for gram, cost_ in zip(chosen, costs(chosen), strict=True)}
    ranked = sorted(((saved[gram], documents[gram], counts[gram], gram) for gram in chosen), reverse=True)
    return [row for row in ranked if row[1] >= 3]


def _distinct(doc: list[str], wanted: set[str]) -> set[str]:
    return {
        run[at : at + size]
        for run in doc
        for size in range(2, LONGEST_ZH + 1)
        for at in range(len(run) - size + 1)
        if run[at : at + size] in wanted
    }


def _entropy(counts: list[int], total: int) -> float:
    """Of the neighbour, in bits; what was pruned or stands at a border counts as ever new neighbours."""
    rest = max(total - sum(counts), 0)
    bits = -sum(count / total * math.log2(count / total) for count in counts)
    return bits + rest / total * math.log2(total)


def english(texts: Iterable[str]) -> list[tuple[int, int, int, str]]:
    """(saved, documents, count, n-gram), best first."""
    docs = [list(_pieces(text)) for text in texts]
    known: set[str] = set()
    total: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    surface: dict[str, Counter[str]] = defaultdict(Counter)
    for size in range(1, LONGEST_EN + 1):
        counts: Counter[str] = Counter()
        found: Counter[str] = Counter()
        for doc in docs:
            seen = set()
            for words in doc:
                for gram, at in _grams([word.lower() for word in words], size, known):
                    counts[gram] += 1
                    seen.add(gram)
                    if counts[gram] < 50:  # enough to know how it is capitalized
                        surface[gram][" ".join(words[at : at + size])] += 1
            found.update(seen)
        known = {gram for gram, count in counts.items() if count >= 15}
        surface = defaultdict(Counter, {g: c for g, c in surface.items() if g in known or g in total})
        good = [g for g in known if found[g] >= 5 and g.split()[0] not in STOP and g.split()[-1] not in STOP]
        total.update({g: counts[g] for g in good})
        documents.update({g: found[g] for g in good})
    names = {gram: surface[gram].most_common(1)[0][0] for gram in total if surface[gram]}
    prices = dict(zip(names, costs([" " + name for name in names.values()]), strict=True))
    rows = [((prices[g] - 1) * total[g], documents[g], total[g], names[g]) for g in names if len(g) > 2]
    return sorted(rows, reverse=True)


def _grams(words: list[str], size: int, known: set[str]) -> Iterator[tuple[str, int]]:
    """The n-grams of one stretch whose two parts, one word shorter, are known to be frequent, and where."""
    for at in range(len(words) - size + 1):
        parts = (" ".join(words[at : at + size - 1]), " ".join(words[at + 1 : at + size]))
        if size == 1 or (parts[0] in known and parts[1] in known):
            yield " ".join(words[at : at + size]), at


def _pieces(text: str) -> Iterator[list[str]]:
    words: list[str] = []
    for match in _WORD.finditer(" ".join(text.split())):
        if match[0][0].isalpha():
            words.append(match[0])
        elif words:
            yield words
            words = []
    if words:
        yield words


def whole(rows: list[tuple[int, int, int, str]], limit: int, sep: str) -> list[tuple[int, int, int, str]]:
    """Without what occurs mostly inside a longer one of the list."""
    inside: Counter[str] = Counter()
    for _, _, count, gram in rows:
        parts = gram.split() if sep else list(gram)
        for size in range(1, len(parts)):
            for at in range(len(parts) - size + 1):
                part = sep.join(parts[at : at + size])
                inside[part] = max(inside[part], count)
    return [row for row in rows if inside[row[3]] < 0.7 * row[2]][:limit]


def uncovered(texts: Iterable[str], glossary: Path | None) -> list[str]:
    """The texts with a line break for every term."""
    if not glossary:
        return list(texts)
    known = savings.useful(form for term in Glossary.read(glossary).terms for form in term.forms)
    return ["".join("\n" if term else piece for piece, term in savings.cut(text, known)) for text in texts]


def main(shared: Path, out: Path, glossary: Path | None = None) -> None:
    corpus = load(shared)
    texts = {"zh": uncovered(corpus.zh, glossary), "en": uncovered(corpus.en, glossary)}
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("zh", whole(chinese(texts["zh"]), SHOWN, "")), ("en", whole(english(texts["en"]), SHOWN, " "))):
        lines = ["ngram\tdocuments\tcount\ttokens_saved"]
        lines += [f"{gram}\t{documents}\t{count}\t{saved}" for saved, documents, count, gram in rows]
        draft = out / f".{name}_ngrams.tsv"
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
        draft.replace(out / f"{name}_ngrams.tsv")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
