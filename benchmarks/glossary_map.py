"""Documents per second that term mapping takes, beside spaCy's PhraseMatcher where it is installed.

Real finance text in pieces of about 600 characters, English and Chinese apart (spaCy has a tokenizer for each);
one process, one thread, the two in turns. Both find the same forms: spaCy's matcher knows no leftmost longest
match, so its `filter_spans` (longest first) is part of its time, as splitting into tokens is.
`python benchmarks/glossary_map.py [NAME|PATH]`; the default is the shipped finance glossary.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

from machine import write_results

from domainkit import assets
from domainkit.data.read import read
from domainkit.glossary import Glossary, is_chinese
from domainkit.matcher import Matcher

RUNS = 7
DOCUMENTS = 4000  # of each language, at most
LENGTH = 600  # characters
SOURCES = {"en": ("fed.jsonl", "cfpb.jsonl"), "zh": ("statutes-finance.jsonl",)}

Find = Callable[[str], set[tuple[int, int]]]  # text → spans


def documents(language: str) -> list[str]:
    """Pieces of `LENGTH` characters of the shipped finance samples."""
    folder = assets.ROOT / "tasks" / "finance" / "data"
    text = "\n".join(example.text for name in SOURCES[language] for example in read(folder / name))
    return [text[start : start + LENGTH] for start in range(0, len(text) - LENGTH, LENGTH)][:DOCUMENTS]


def ours(matcher: Matcher) -> Find:
    return lambda text: {(match.start, match.end) for match in matcher.find(text)}


def peer(glossary: Glossary, language: str) -> Find:
    """spaCy: one matcher for forms in any case, one for forms as they stand."""
    import spacy
    from spacy.matcher import PhraseMatcher
    from spacy.util import filter_spans

    nlp = spacy.blank(language)
    forms = [form for term in glossary.terms for form in term.forms if is_chinese(form) == (language == "zh")]
    any_case, exact = PhraseMatcher(nlp.vocab, attr="LOWER"), PhraseMatcher(nlp.vocab, attr="ORTH")
    for form in forms:
        (any_case if language == "en" and form == form.lower() else exact).add(form, [nlp.make_doc(form)])

    def find(text: str) -> set[tuple[int, int]]:
        doc = nlp.make_doc(text)
        spans = filter_spans([doc[start:end] for known in (any_case, exact) for _, start, end in known(doc)])
        return {(span.start_char, span.end_char) for span in spans}

    return find


def measure(finders: dict[str, Find], texts: list[str]) -> dict[str, object]:
    """Documents per second and matches of each finder, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in finders}
    found: dict[str, list[set[tuple[int, int]]]] = {}
    for _ in range(RUNS):
        for name, find in finders.items():
            began = time.perf_counter()
            found[name] = [find(text) for text in texts]
            seconds[name].append(time.perf_counter() - began)
    results: dict[str, object] = {
        name: {
            "documents per second, median": round(len(texts) / statistics.median(took)),
            "slowest and fastest run": [round(len(texts) / max(took)), round(len(texts) / min(took))],
            "matches": sum(map(len, found[name])),
        }
        for name, took in seconds.items()
    }
    if len(finders) > 1:
        mine, others = found.values()
        results["matches in common"] = sum(len(a & b) for a, b in zip(mine, others, strict=True))
    characters = sum(map(len, texts))
    return {"documents": len(texts), "characters": characters, **results}


def main() -> None:
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    glossary = Glossary.load(sys.argv[1] if len(sys.argv) > 1 else "finance")
    read_in, began = time.perf_counter() - began, time.perf_counter()
    matcher = Matcher(glossary)
    built_in = time.perf_counter() - began
    has_peer = find_spec("spacy") is not None
    if not has_peer:
        print("spaCy is not installed: its PhraseMatcher is left out (pip install spacy)")
    results: dict[str, object] = {
        "glossary": {
            "name": glossary.name, "sha256": glossary.sha256, "terms": len(glossary.terms),
            "forms": sum(len(term.forms) for term in glossary.terms),
            "seconds to read": round(read_in, 3), "seconds to build the matcher": round(built_in, 3),
        },
    }  # fmt: skip
    for language in SOURCES:
        finders = {"domainkit": ours(matcher)} | ({"spaCy": peer(glossary, language)} if has_peer else {})
        results[language] = measure(finders, documents(language))
    load.append(os.getloadavg()[0])
    print(results, "→", write_results("glossary_map", results, load=load, peer=_spacy_version() if has_peer else None))


def _spacy_version() -> str:
    from importlib.metadata import version

    return f"spaCy {version('spacy')}"


if __name__ == "__main__":
    main()
