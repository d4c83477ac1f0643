"""Linking of gold mentions on BC5CDR: from a lookup of names to a linker that read the training set.

    python benchmarks/linking.py [--folds | --untaught]

Asked are the gold mentions of the dev documents; the training documents alone teach. Beside the parts of domainkit
stands what scispaCy's candidate generator does: the concept whose name is nearest over character trigrams. Times are
CPU times of one thread.

--folds: the same within the training set, a fifth held out five times. All settings were chosen so, none on dev.
--untaught: prints what a linker weighs that reads no documents, to be put into `domainkit.link.UNTAUGHT`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from machine import write_results

from domainkit import assets
from domainkit.data.read import read
from domainkit.graph import ConceptGraph
from domainkit.link import Linker
from domainkit.link.abbreviation import Mention, mentions, surface
from domainkit.link.names import names_of
from domainkit.link.teach import learn
from domainkit.model.base import load_base
from domainkit.model.names import embed_names
from domainkit.ontology.names import words
from domainkit.spanscore import link_accuracy
from domainkit.types import Example

BASE = "smollm2-135m"
FOLDS = 5

Linking = Callable[[Example], Example]


def corpus(part: str) -> list[Example]:
    return list(read(assets.ROOT / "tasks" / "medical" / "data" / f"bc5cdr-{part}.jsonl.gz"))


def by(find: Callable[[Mention], Sequence[str]]) -> Linking:
    """Links every mention to the first concept that `find` returns."""

    def link(example: Example) -> Example:
        first = {key: next(iter(find(one)), None) for key, one in mentions(example).items()}
        spans = (replace(span, concept=first[surface(example, span), span.label]) for span in example.spans)
        return replace(example, spans=tuple(spans))

    return link


def plain(graph: ConceptGraph) -> dict[str, Linking]:
    """Ways to link that neither learn nor weigh."""
    names = names_of(graph)

    def normalised(text: str) -> tuple[str, ...]:
        return graph.find(text) or names.find(words(text))

    def nearest(text: str) -> tuple[str, ...]:
        form = " ".join(words(text))
        return tuple(id_ for number, _ in names.near([(form, "")]).get((form, ""), ()) for id_ in names.owners[number])

    return {
        "exact lookup": by(lambda one: graph.find(one.text)),
        "normalised lookup": by(lambda one: normalised(one.text)),
        "normalised lookup, abbreviations": by(lambda one: normalised(one.long or one.text)),
        "trigrams (scispaCy's candidates)": by(lambda one: nearest(one.text)),
        "trigrams, abbreviations": by(lambda one: nearest(one.long or one.text)),
        "linker, untaught": Linker(graph).link_document,
    }


def taught(graph: ConceptGraph, documents: Sequence[Example]) -> Iterator[tuple[str, Linking, float]]:
    """Linkers that read the documents: (name, how they link, seconds they learned)."""
    for name, embed in (
        ("linker, taught", None),
        ("linker, taught, embedding", partial(embed_names, load_base(BASE))),
    ):
        began = time.process_time()
        linker = Linker.taught(graph, documents, embed=embed)
        yield name, linker.link_document, time.process_time() - began


def measure(link: Linking, gold: Sequence[Example]) -> dict[str, Any]:
    """Accuracy with its interval, by label; what becomes of mentions without a concept; milliseconds per document."""
    link(gold[0])  # what is prepared once is not timed
    began = time.process_time()
    found = [link(one) for one in gold]
    milliseconds = 1000 * (time.process_time() - began) / len(gold)
    scores, labels = link_accuracy(gold, found, seed=0)
    pairs = [
        (g, f) for one, other in zip(gold, found, strict=True) for g, f in zip(one.spans, other.spans, strict=True)
    ]
    return {
        **{name: asdict(score) for name, score in scores.items()},
        "by_label": labels,
        "linked": sum(bool(g.concepts and f.concepts) for g, f in pairs) / sum(bool(g.concepts) for g, _ in pairs),
        "without_concept": sum(not g.concepts for g, _ in pairs),
        "left_unlinked_of_these": sum(not g.concepts and not f.concepts for g, f in pairs),
        "milliseconds_per_document": round(milliseconds, 1),
    }


def told(name: str, found: dict[str, Any]) -> None:
    score = found["link_accuracy"]
    labels = ", ".join(f"{label} {one['link_accuracy']:.3f}" for label, one in found["by_label"].items())
    print(
        f"{name:<34} {score['value']:.4f} [{score['low']:.3f}, {score['high']:.3f}]  {labels};  linked "
        f"{found['linked']:.3f}, unlinked {found['left_unlinked_of_these']} of {found['without_concept']} that have "
        f"no concept;  {found['milliseconds_per_document']} ms",
        flush=True,
    )


def on_dev(graph: ConceptGraph) -> dict[str, Any]:
    gold, results = corpus("dev"), dict[str, Any]()
    for name, link in plain(graph).items():
        told(name, results.setdefault(name, measure(link, gold)))
    for name, link, seconds in taught(graph, corpus("train")):
        told(name, results.setdefault(name, measure(link, gold) | {"learning_seconds": round(seconds, 1)}))
    return results


def in_folds(graph: ConceptGraph) -> dict[str, Any]:
    """Accuracy of what is taught over all folds of the training set, pooled."""
    documents, right, linked = corpus("train"), dict[str, float](), 0
    for number in range(FOLDS):
        held = documents[number::FOLDS]
        count = sum(bool(span.concepts) for one in held for span in one.spans)
        linked += count
        for name, link, _ in taught(graph, [one for i, one in enumerate(documents) if i % FOLDS != number]):
            right[name] = right.get(name, 0.0) + count * measure(link, held)["link_accuracy"]["value"]
    results = {name: hits / linked for name, hits in right.items()}
    print(*(f"{name:<34} {value:.4f}" for name, value in results.items()), sep="\n")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folds", action="store_true", help="within the training set, a fifth held out five times")
    parser.add_argument("--untaught", action="store_true", help="fit the weights of a linker that reads no documents")
    args = parser.parse_args()
    load, graph = [os.getloadavg()[0]], ConceptGraph.load("medical")
    began = time.process_time()
    names = names_of(graph)
    prepared = round(time.process_time() - began, 1)
    print(f"{len(names.forms):,} names prepared in {prepared} s")
    if args.untaught:
        weights, threshold = learn(names, corpus("train"), None, remember=False)
        print({name: weight for name, weight in weights.items() if weight}, round(threshold, 4))
        return
    results = in_folds(graph) if args.folds else on_dev(graph)
    load.append(os.getloadavg()[0])
    print(
        write_results(
            "linking-folds" if args.folds else "linking", results, load=load, preparing_names_seconds=prepared
        )
    )


if __name__ == "__main__":
    main()
