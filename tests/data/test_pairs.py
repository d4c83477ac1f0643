"""Pairs of concepts: which are asked for, where their mentions stand, what a graph says of them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from domainkit.data.pairs import FACTS, TOGETHER, Window, windows
from domainkit.data.signatures import Signatures
from domainkit.graph import ConceptGraph
from domainkit.types import Example, Relation, Sequence, Span

TEXT = "Lithium and tremor. Lithium 3 mg was given with aspirin. There was hypertension but no tremor, nor ataxia."
CONCEPTS = {
    "Lithium": ("Chemical", "D008094"), "aspirin": ("Chemical", "D001241"), "tremor": ("Disease", "D014202"),
    "hypertension": ("Disease", "D006973"), "ataxia": ("Disease", None),
}  # fmt: skip
ASKED = Signatures(("CID",), ("Chemical", "Disease"), np.array([[[False, True], [False, False]]]))


def document(text: str = TEXT, *relations: Relation) -> Example:
    found = re.finditer("|".join(CONCEPTS), text)
    return Example(text, tuple(Span(m.start(), m.end(), *CONCEPTS[m[0]]) for m in found), relations, id="1")


def tokens(text: str, start: int = 0, end: int | None = None) -> Sequence:
    """A window of words."""
    offsets = [(m.start(), m.end()) for m in re.finditer(r"\w+|\S", text)][start:end]
    return Sequence((0, *range(1, len(offsets) + 1)), len(text), "1", offsets=((0, 0), *offsets))


def made(example: Example, asked: Signatures = ASKED, *, directed: bool = True, end: int | None = None,
         graph: ConceptGraph | None = None) -> Window:  # fmt: skip
    return next(windows(example, [tokens(example.text, 0, end)], asked, directed=directed, graph=graph))


def named(found: Window) -> set[tuple[str, str]]:
    pairs = found.pairs
    return {(pairs.names[h], pairs.names[t]) for h, t in zip(pairs.heads, pairs.tails, strict=True)}


UNLINKED = f"{TEXT.index('ataxia')}:{TEXT.index('ataxia') + 6}"


def test_pairs_of_the_labels_that_may_be_related() -> None:
    found = made(document())
    assert named(found) == {(c, d) for c in ("D008094", "D001241") for d in ("D014202", "D006973", UNLINKED)}
    assert found.pairs.facts.shape == (6, FACTS) and found.pairs.gold.shape == (6, 1)
    free = Signatures.free(("CID",), ("Chemical", "Disease"))
    assert len(named(made(document(), free))) == 20 and len(named(made(document(), free, directed=False))) == 10


def test_without_pairs_everything_is_empty() -> None:
    for example in (document("Lithium alone."), Example("Nothing at all.", id="1"), Example("", id="1")):
        pairs = made(example).pairs
        assert len(pairs.heads) == 0 and pairs.facts.shape == (0, FACTS) and pairs.gold.shape == (0, 1)


def test_a_window_asks_only_for_what_it_names() -> None:
    assert named(made(document(), end=4)) == {("D008094", "D014202")}


def test_mentions_stand_on_their_tokens() -> None:
    found = made(document())
    pairs = found.pairs
    spelled = {
        (pairs.names[i], TEXT[found.offsets[first][0] : found.offsets[last - 1][1]])
        for i, first, last in pairs.mentions
    }
    assert spelled == {(one or UNLINKED, word) for word, (_, one) in CONCEPTS.items()}
    assert len(pairs.mentions) == 7
    assert [int(pairs.sentences[first]) for _, first, _ in sorted(map(tuple, pairs.mentions), key=lambda m: m[1])] == [
        0, 0, 1, 1, 2, 2, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("directed", [True, False])
def test_gold_is_of_the_pair_and_of_the_direction_where_it_counts(directed: bool) -> None:
    free = Signatures.free(("Bind", "CID"), ("Chemical", "Disease"))
    example = document(TEXT, Relation("D014202", "CID", "D008094"), Relation("D001241", "Bind", "D006973,D014202"))
    pairs = made(example, free, directed=directed).pairs
    told = {(pairs.names[pairs.heads[i]], free.relations[r], pairs.names[pairs.tails[i]])
            for i, r in zip(*pairs.gold.nonzero(), strict=True)}  # fmt: skip
    expected = {("D014202", "CID", "D008094"), ("D001241", "Bind", "D006973"), ("D001241", "Bind", "D014202")}
    if not directed:  # the order of the text
        expected = {("D008094", "CID", "D014202"), ("D001241", "Bind", "D006973"), ("D014202", "Bind", "D001241")}
    assert told == expected


def test_one_sentence_or_several() -> None:
    pairs = made(document()).pairs
    together = {(pairs.names[h], pairs.names[t]): bool(f[TOGETHER])
                for h, t, f in zip(pairs.heads, pairs.tails, pairs.facts, strict=True)}  # fmt: skip
    assert {pair for pair, near in together.items() if near} == {("D008094", "D014202")}


def test_the_graph_speaks_of_pairs_and_of_kinds() -> None:
    graph = ConceptGraph.load("medical")
    link = next(one for one in graph.links if one.relation == "treats")
    spans = (Span(0, 1, "Chemical", f"MESH:{link.head}"), Span(2, 3, "Disease", link.tail))
    example = Example("a b", spans)
    plain, told = made(example).pairs, made(example, graph=graph).pairs
    assert not np.array_equal(plain.facts, told.facts)
    assert [len(kinds) for kinds in plain.kinds] == [1, 1] and all(len(kinds) > 1 for kinds in told.kinds)
    apart = replace(example, spans=(spans[0], replace(spans[1], concept="D000000")))
    assert not np.array_equal(made(apart, graph=graph).pairs.facts, told.facts)


def test_facts_are_finite_and_of_one_size() -> None:
    long = made(document(" ".join([TEXT] * 200))).pairs.facts
    assert np.isfinite(long).all() and np.abs(long).max() < 10
