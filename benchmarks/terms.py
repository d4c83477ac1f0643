"""How well the rows of the glossary's terms tell translations that were never learned, over all such forms.

    python benchmarks/terms.py

The report of the task `terms` asks about a sample, in real sentences; this asks for every Chinese form of every term
that was kept from the fit. Beside it the same on mean rows, which no text was read for, so that it shows what the
distillation of the rows has to do with it.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from machine import write_results

from domainkit.glossary import is_chinese
from domainkit.prepare import Request, prepare
from domainkit.spec import Domain

ROWS = {"distilled": (), "mean": ("glossary_tokens=0",)}


@torch.no_grad()
def measure(overrides: tuple[str, ...]) -> dict[str, float]:
    """Shares of forms whose right term comes first, among all candidates."""
    domain = Domain.load("finance", overrides=("terms.test_queries=1", *overrides))
    setting = prepare(Request("finance", tasks=("terms",)), domain)
    prepared, base = setting.prepared["terms"], setting.base
    head: Any = setting.kinds["terms"].head(base, prepared)
    index = {term: i for i, term in enumerate(prepared.labels)}
    assert setting.glossary is not None
    forms = [
        (form, index[t.id]) for t in setting.glossary.terms if t.id in index for form in t.forms if is_chinese(form)
    ]
    weight = base.embedding.weight
    ids = [base.tokenizer.encode(form, add_special_tokens=False) for form, _ in forms]
    rows = torch.stack([weight[one].mean(0) for one in ids])
    best = torch.cat([head(part, weight[head.ids]).argmax(-1) for part in rows.split(512)]).tolist()
    right: dict[bool, list[bool]] = {True: [], False: []}
    for (_, answer), found in zip(forms, best, strict=True):
        right[bool(head.known[answer])].append(found == answer)
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
