"""How good glossaries/finance.tsv is: size, attestation, and the share of a random sample that is right.

    python benchmarks/glossary_quality.py SHARED_DATA_FOLDER [--draw]

`--draw` writes the sample to scripts/finance_glossary/judged.tsv for somebody to fill in `verdict` (right or
wrong) and `why`; verdicts on rows that are unchanged stay. Without it, counts what was judged.

A first sample of 300 (seed 20260) found 90 % right. What caused the faults was mended afterwards: English of
dictionary rows given to rows that are only akin, plurals with another meaning (principals), Chinese narrower than the
English, generic words and fragments. The sample now is another one, drawn after that.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import write_results

from domainkit.files import write_text
from domainkit.fill import Faults
from domainkit.glossary import Glossary, Term, is_chinese

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from finance_glossary import attest, corpus  # noqa: E402  the path above leads there

GLOSSARY = ROOT / "glossaries" / "finance.tsv"
JUDGED = ROOT / "scripts" / "finance_glossary" / "judged.tsv"
COLUMNS = ("id", "en", "zh", "variants", "category", "verdict", "why")
SAMPLE, SEED = 300, 71093
VERDICTS = ("right", "wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with finance/")
    parser.add_argument("--draw", action="store_true", help="write the sample to judge")
    arguments = parser.parse_args()
    glossary = Glossary.read(GLOSSARY)
    if arguments.draw:
        write_text(JUDGED, drawn(glossary.terms, judged()))
        print(f"{SAMPLE} rows to judge → {JUDGED}")
        return
    results = measured(glossary, corpus.load(arguments.shared))
    print(results, "→", write_results("glossary_quality", results))


def cells(term: Term) -> tuple[str, ...]:
    """What the judge saw."""
    return (term.id, term.en, "|".join(term.zh), "|".join(term.variants), term.category)


def drawn(terms: Sequence[Term], before: dict[str, dict[str, str]]) -> str:
    """The sample as a file; a verdict `before` stays where the row is as it was judged."""
    lines = ["\t".join(COLUMNS)]
    for term in sorted(random.Random(SEED).sample(terms, SAMPLE), key=lambda term: term.id):
        row = before.get(term.id, {})
        same = tuple(row.get(column, "") for column in COLUMNS[:5]) == cells(term)
        lines.append("\t".join((*cells(term), *(row[key] if same else "" for key in ("verdict", "why")))))
    return "\n".join(lines) + "\n"


def judged() -> dict[str, dict[str, str]]:
    """The rows of judged.tsv by id. Raises UserError with all its faults."""
    if not JUDGED.exists():
        return {}
    faults = Faults(str(JUDGED))
    with JUDGED.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restval=""))
    for number, row in enumerate(rows, 2):
        if row["verdict"] and row["verdict"] not in VERDICTS:
            faults.add(f"line {number}: unknown verdict {row['verdict']!r}", f"one of {VERDICTS}, or empty")
    faults.stop()
    return {row["id"]: row for row in rows}


def measured(glossary: Glossary, texts: corpus.Corpus) -> dict[str, Any]:
    """Everything the result file says."""
    forms = [form for term in glossary.terms for form in term.forms]
    english = attest.english(texts.en, (form for form in forms if not is_chinese(form)))
    chinese = attest.chinese(texts.zh, filter(is_chinese, forms))

    def occurs(term: Term, language: str) -> bool:
        mine = [form for form in term.forms if is_chinese(form) == (language == "zh")]
        return any((chinese if language == "zh" else english).of(form) for form in mine)

    share = {language: sum(occurs(term, language) for term in glossary.terms) for language in ("en", "zh")}
    either = sum(occurs(term, "en") or occurs(term, "zh") for term in glossary.terms)
    total = len(glossary.terms)
    return {
        "entries": total,
        "forms": len(forms),
        "occur in finance text": {"either": either / total} | {key: count / total for key, count in share.items()},
        "judged": verdicts(glossary),
        "by category": dict(Counter(term.category for term in glossary.terms).most_common()),
        "by source": dict(Counter(term.source for term in glossary.terms).most_common()),
        "sha256": glossary.sha256,
    }


def verdicts(glossary: Glossary) -> dict[str, Any]:
    """Right and wrong among the judged rows that still stand as they were judged, with a 95 % Wilson interval."""
    now = {term.id: cells(term) for term in glossary.terms}
    rows = [row for row in judged().values() if row["verdict"]]
    current = [row for row in rows if now.get(row["id"]) == tuple(row[column] for column in COLUMNS[:5])]
    right = sum(row["verdict"] == "right" for row in current)
    low, high = wilson(right, len(current))
    share = right / len(current) if current else None
    changed = len(rows) - len(current)
    return {
        "rows": len(current),
        "right": right,
        "share": share,
        "low": low,
        "high": high,
        "changed since": changed,
    }


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    if not of:
        return 0.0, 1.0
    share, extra = right / of, z * z / of
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / of + extra / (4 * of))
    return max(middle - half, 0.0), min(middle + half, 1.0)


if __name__ == "__main__":
    main()
