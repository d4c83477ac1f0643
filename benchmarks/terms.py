"""How well the rows of the glossary's terms tell translations that were never learned, over all such forms.

    python benchmarks/terms.py

The report of the task `terms` asks about a sample, in real sentences; this asks for every Chinese form of every term
that was kept from the fit. Beside it the same on mean rows, which no text was read for, so that it shows what the
distillation of the rows has to do with it.
"""

from __future__ import annotations

import os
from typing import Any

from machine import write_results

from domainkit.glossary import is_chinese
from domainkit.prepare import Request, prepare
from domainkit.spec import Domain

ROWS = {"distilled": (), "mean": ("glossary_tokens=0",)}


def measure(overrides: tuple[str, ...]) -> dict[str, float]:
    """Shares of forms whose right term comes first, among all candidates."""
    domain = Domain.load("finance", overrides=("terms.test_queries=1", *overrides))
    setting = prepare(Request("finance", tasks=("terms",)), domain)
    prepared, base = setting.prepared["terms"], setting.base
    head: Any = setting.kinds["terms"].head(base, prepared)
    index = {term: i for i, term in enumerate(prepared.labels)}
    assert setting.glossary is not None
    right: dict[bool, list[bool]] = {True: [], False: []}
    weight = base.embedding.weight
    for term in setting.glossary.terms:
        forms = [form for form in term.forms if is_chinese(form)] if term.id in index else []
        for form in forms:
            row = weight[base.tokenizer.encode(form, add_special_tokens=False)].mean(0)
            best = int(head(row[None], weight[head.ids]).argmax())
            right[bool(head.known[index[term.id]])].append(best == index[term.id])
    return {
        "candidates": len(index),
        "known_forms": len(right[True]),
        "known": sum(right[True]) / len(right[True]),
        "new_forms": len(right[False]),
        "new": sum(right[False]) / len(right[False]),
    }


def main() -> None:
    load = [os.getloadavg()[0]]
    results = {name: measure(overrides) for name, overrides in ROWS.items()}
    load.append(os.getloadavg()[0])
    for name, found in results.items():
        print(
            f"{name} rows: {found['new']:.1%} of {found['new_forms']} forms never learned, {found['known']:.1%} known"
        )
    print(write_results("terms", results, load=load))


if __name__ == "__main__":
    main()
