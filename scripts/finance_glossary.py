"""Compile glossaries/finance.tsv from dictionaries, entries by hand and edits.

    python scripts/finance_glossary.py SHARED_DATA_FOLDER [--out glossaries/finance.tsv] [--candidates FILE]

Deterministic: the same sources give the same bytes. scripts/finance_glossary/README.md tells how it is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from finance_glossary import corpus, hand, normal, savings, selection, sources
from finance_glossary.evidence import FOLDER, Evidence
from finance_glossary.rows import Row

from domainkit.files import write_text
from domainkit.glossary import HEADER, Glossary

OUT = Path(__file__).resolve().parents[1] / "glossaries" / "finance.tsv"
OFFERED = 6_000  # candidates of the dictionaries to review
WANTED = 5_200  # rows at least; more than are needed, so that review may strike some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with terms/ and finance/")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--candidates", type=Path, help="also write the candidates of the dictionaries, before edits")
    arguments = parser.parse_args()
    terms, texts = arguments.shared / "terms", corpus.load(arguments.shared)
    pairs, entries = sources.pairs(terms), hand.entries(FOLDER)
    more = {form for row in entries for form in row.forms} | {normal.singular_term(pair.en) for pair in pairs}
    evidence = Evidence.gather(pairs, texts, terms, more)
    candidates = selection.dictionary(pairs, evidence.of_pairs(pairs))
    if arguments.candidates:
        write_text(arguments.candidates, table(selection.with_variants(candidates[:OFFERED], evidence), evidence))
    changes = hand.edits(FOLDER, {row.id for row in (*entries, *candidates)})
    rows = selection.glossary(hand.apply(entries, changes), hand.apply(candidates, changes), WANTED, evidence)
    write_text(arguments.out, table(rows))
    _report(Glossary.read(arguments.out), evidence)


def table(rows: Iterable[Row], evidence: Evidence | None = None) -> str:
    """The rows as a glossary file; with `evidence` also how often finance text has them."""
    lines = [HEADER + "\tcount_en\tcount_zh" * (evidence is not None)]
    for row in rows:
        cells = [row.id, row.en, "|".join(row.zh), "|".join(row.variants), row.category, row.source]
        if evidence:
            cells += [str(sum(counts.of(form) for form in row.forms)) for counts in (evidence.en, evidence.zh)]
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def _report(glossary: Glossary, evidence: Evidence) -> None:
    """Print size, attestation and what the terms save in the training part of the samples."""
    terms = glossary.terms
    found = sum(evidence.attested(term.forms) for term in terms)
    by_hand = sum("hand" in term.source for term in terms)
    print(f"{glossary.path}: {len(terms):,} rows, {by_hand:,} by hand, {found / len(terms):.1%} occur in finance text")
    forms = [form for term in terms for form in term.forms]
    for name in corpus.FINANCE:
        print(f"{name}, training part: {savings.change(corpus.training(name), forms):+.1%} base tokens")


if __name__ == "__main__":
    main()
