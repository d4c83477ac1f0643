"""What annotation holds that a task or its concept graph does not know: passed over, but not silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches

from domainkit.graph import MESH, ConceptGraph
from domainkit.types import Example

SHOWN = 5  # labels or ids that are spelled out


def strangers(examples: Iterable[Example], labels: Collection[str], graph: ConceptGraph | None) -> Iterator[str]:
    """A line for the labels of spans that are none of `labels`, and one for the concept ids that the graph lacks.

    Such spans are not learned; such concepts are learned as they are, but have no names to be found by.

    >>> next(strangers(examples, ("Chemical",), graph))
    "3 spans are left out, as their labels are not asked for: Chemcial (3; is it 'Chemical'?)"
    """
    examples = list(examples)
    other = Counter(span.label for e in examples for span in e.spans if span.label not in labels)
    if other:
        told = _listed({f"{label} ({count}{_like(label, labels)})": count for label, count in other.items()})
        yield f"{other.total():,} spans are left out, as their labels are not asked for: {told}"
    if graph:
        ids = Counter(id_ for e in examples for span in e.spans if span.label in labels for id_ in span.concepts)
        unknown = {id_: n for id_, n in ids.items() if not {id_, id_.removeprefix(MESH)} & graph.concepts.keys()}
        if unknown:
            yield f"{len(unknown):,} of {len(ids):,} concept ids are unknown to {graph.path.name}: {_listed(unknown)}"


def _like(label: str, labels: Collection[str]) -> str:
    close = get_close_matches(label, labels, n=1, cutoff=0.8)
    return f"; is it {close[0]!r}?" if close else ""


def _listed(counted: dict[str, int]) -> str:
    """The names that are counted, the most frequent first."""
    names = sorted(counted, key=lambda name: (-counted[name], name))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
