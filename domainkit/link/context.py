"""What the mentions of a document say of each other: what one means speaks for the same, and for what is near it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from domainkit.link.evidence import Case, Sign
from domainkit.link.weigh import likelihood

Said = dict[tuple[str, Sign, str], list[tuple[str, float]]]  # (label, sign, ids it speaks for) → (mention, probability)


def with_context(cases: Sequence[Case], above: Mapping[str, Sequence[str]], weights: np.ndarray) -> list[Case]:
    """The cases of one document with what its other mentions of the same label mean, each judged by itself.

    above: concept → what it is a kind of.
    """
    said: Said = {}
    for case in cases:
        if case.ids:
            probabilities = likelihood(case.evidence, weights)[:-1]
            best = int(probabilities.argmax())
            ids, by = case.ids[best], (case.mention.text.lower(), float(probabilities[best]))
            said.setdefault((case.mention.label, Sign.SAME, ids), []).append(by)
            for wider in above.get(ids, ()):
                said.setdefault((case.mention.label, Sign.ABOVE, wider), []).append(by)
    return [_with(case, said, above) for case in cases]


def _with(case: Case, said: Said, above: Mapping[str, Sequence[str]]) -> Case:
    evidence, own = case.evidence.copy(), case.mention
    for row, ids in zip(evidence, case.ids, strict=False):  # the last row is that none fits
        spoken = [(sign, ids, sign) for sign in (Sign.SAME, Sign.ABOVE)]
        spoken += [(Sign.SAME, wider, Sign.BELOW) for wider in above.get(ids, ())]
        for told, of, sign in spoken:
            others = (p for by, p in said.get((own.label, told, of), ()) if by != own.text.lower())
            row[sign] = max(row[sign], max(others, default=0.0))
    return replace(case, evidence=evidence)
