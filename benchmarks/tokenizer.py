"""A glossary inside the embedded base's tokenizer: what it saves, costs, and leaves as it was.

    python benchmarks/tokenizer.py                  # the finance glossary
    python benchmarks/tokenizer.py my-terms.tsv     # another one

Forms are chosen on the training documents, tokens are counted on the test documents (the split of the lm task).
Speed is that of one thread, both tokenizers taking turns on the same documents.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library starts its threads

from machine import write_results
from tokenizers import Tokenizer

from domainkit.data.mix import split
from domainkit.data.read import read
from domainkit.glossary import Glossary
from domainkit.model.bases import resolve
from domainkit.model.folder import read_tokenizer
from domainkit.model.vocab import Vocabulary, choose, inject
from domainkit.spec import Domain

REPEATS = 9  # of each side, in turn
SAMPLE = 400_000  # bytes of each slice that are timed
ROWS, WIDTH = 49152, 576  # of the base's embedding, float32


def slices() -> dict[str, tuple[list[str], list[str]]]:
    """Training and test documents by slice, such as "finance-zh"."""
    found: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    domain = Domain.load("finance")
    for source in domain.task("lm").sources:
        part = "general" if source.part == "general" else domain.name
        for into, side in zip(found[f"{part}-{source.language}"], split(read(source.path)), strict=True):
            into += [example.text for example in side]
    return found


def tokens(base: Tokenizer, new: Tokenizer, texts: Iterable[str], first: int) -> dict[str, Any]:
    """Tokens before and after, line by line; raises AssertionError if a line is damaged, or longer."""
    count = {"lines": 0, "before": 0, "after": 0, "lines without a term": 0, "of these with the same ids": 0}
    for line in (line for text in texts for line in text.splitlines()):
        before, after = base.encode(line).ids, new.encode(line).ids
        assert new.decode(after, skip_special_tokens=False) == line, line
        assert len(after) <= len(before), line
        plain = all(token < first for token in after)
        count["lines"] += 1
        count["before"] += len(before)
        count["after"] += len(after)
        count["lines without a term"] += plain
        count["of these with the same ids"] += plain and before == after
    return {**count, "change": count["after"] / max(1, count["before"]) - 1}


def speed(base: Tokenizer, new: Tokenizer, texts: list[str]) -> dict[str, float]:
    """Megabytes per second of both, medians, and their quotient."""
    taken: list[str] = []
    size = 0
    for text in texts:
        if size < SAMPLE:
            taken.append(text)
            size += len(text.encode())
    seconds: dict[str, list[float]] = {"base": [], "with terms": []}
    for _ in range(REPEATS):
        for name, tokenizer in (("base", base), ("with terms", new)):
            began = time.perf_counter()
            tokenizer.encode_batch_fast(taken)
            seconds[name].append(time.perf_counter() - began)
    rates = {name: size / 1e6 / statistics.median(all_) for name, all_ in seconds.items()}
    return {**rates, "ratio": rates["with terms"] / rates["base"]}


def load_seconds(tokenizer: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def rows(vocabulary: Vocabulary) -> dict[str, Any]:
    count = len(vocabulary.forms)
    terms = len(set(vocabulary.terms))
    return {"rows": count, "terms": terms, "bytes": count * WIDTH * 4, "left out": dict(vocabulary.left_out)}


def main() -> None:
    glossary = Glossary.load(sys.argv[1] if len(sys.argv) > 1 else "finance")
    load = [os.getloadavg()[0]]
    tokenizer = read_tokenizer(resolve("smollm2-135m"))
    documents = slices()
    began = time.perf_counter()
    vocabulary = choose(glossary, tokenizer, [t for learn, _ in documents.values() for t in learn], rows=ROWS)
    chosen = time.perf_counter() - began
    extended = inject(tokenizer, vocabulary)
    base, new = tokenizer.backend_tokenizer, extended.backend_tokenizer
    speeds = {name: speed(base, new, learn + held) for name, (learn, held) in documents.items()}
    every = [text for sides in documents.values() for side in sides for text in side[:40]]
    results = {
        "glossary": {"name": glossary.name, "terms": len(glossary.terms), "sha256": glossary.sha256},
        "cost": rows(vocabulary),
        "held-out text": {name: tokens(base, new, held, vocabulary.first) for name, (_, held) in documents.items()},
        "MB per second, one thread": {**speeds, "together": speed(base, new, every)},
        "seconds": {"choose": chosen, "load": load_seconds(extended), "load of the base": load_seconds(tokenizer)},
    }
    load.append(os.getloadavg()[0])
    name = "tokenizer" if glossary.name == "finance" else f"tokenizer-{glossary.name}"
    print(results, "→", write_results(name, results, load=load))


if __name__ == "__main__":
    main()
