"""Which Chinese forms can become one token without making any text longer.

Splitting a form out breaks the base's tokens that cross its edges: a row for 授信 would cost the text 教授信任, two
tokens of many bases, three. Each form is weighed against the worst neighbours the vocabulary allows. Everything here
is in byte-level BPE's own spelling, one character a byte.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

from tokenizers.models import BPE

NEVER = 1 << 60  # later than any merge
SPACES = (" ", "\t", "\n", "\r", "\u00a0", "\u2003", "\u3000")


class Edges:
    """How a base cuts what is left on each side of a form that was split out."""

    def __init__(self, model: Mapping[str, Any], tokens: Iterable[str]) -> None:
        """model: the "model" of tokenizer.json. tokens: its vocabulary without special tokens."""
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        self.tokens = frozenset(tokens)
        self._rank = {pair: rank for rank, pair in enumerate(pairs)}
        self._bpe = BPE(dict(model["vocab"]), pairs).tokenize
        self._known: dict[tuple[str, bool], int] = {}

    def cut(self, text: str) -> list[str]:
        """The base's tokens of a text, by merges alone."""
        return [token.value for token in self._bpe(text)]

    def cost(self, rest: str, *, left: bool) -> int:
        """The most tokens by which `rest` can lengthen the text it is left with.

        left: `rest` ends the text before the form, else it begins the text after it. Mostly that is the number of
        its own tokens, but a neighbour may be cut otherwise when it stands beside `rest` alone. The neighbour's own
        neighbours are not followed: no text was ever found that needs it, and it takes minutes.
        """
        if (rest, left) in self._known:
            return self._known[rest, left]
        parts = self.cut(rest)
        beside = (token + rest if left else rest + token for token in self._unsettled(parts, left=left))
        self._known[rest, left] = max([len(parts), *(len(self.cut(both)) - 1 for both in beside)])
        return self._known[rest, left]

    def _unsettled(self, parts: list[str], *, left: bool) -> Iterator[str]:
        """Tokens that a merge across the edge would break, or that would break the first part."""
        near = parts[0] if left else parts[-1]
        for inner, inner_until in self._spine(near, right=not left):
            for outer in self._partners[left].get(inner, ()):
                rank = self._rank[(outer, inner) if left else (inner, outer)]
                if rank <= inner_until:
                    yield from (token for token, until in self._ending[left].get(outer, ()) if rank <= until)

    @cached_property
    def _last(self) -> dict[str, tuple[str, str]]:
        """The merge that completes each token."""
        ways: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for pair in self._rank:
            ways["".join(pair)].append(pair)
        return {token: pairs[0] if len(pairs) == 1 else self._final(token) for token, pairs in ways.items()}

    def _final(self, token: str) -> tuple[str, str]:
        """The last pair that merges when a token is built from its bytes."""
        parts = list(token)
        while len(parts) > 2:
            rank, at = min((self._rank.get(pair, NEVER), at) for at, pair in enumerate(pairwise(parts)))
            if rank == NEVER:
                break
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        return parts[0], "".join(parts[1:])

    def _spine(self, token: str, *, right: bool) -> Iterator[tuple[str, int]]:
        """The tokens that stand at one end of `token` while it is built, each with the merge that uses it up."""
        until = NEVER
        while True:
            yield token, until
            pair = self._last.get(token)
            if pair is None:
                return
            token, until = pair[right], self._rank.get(pair, NEVER)

    @cached_property
    def _ending(self) -> dict[bool, dict[str, list[tuple[str, int]]]]:
        """For True, by the part that ends it while it is built: the tokens. For False, by the part that begins it."""
        found: dict[bool, dict[str, list[tuple[str, int]]]] = {True: defaultdict(list), False: defaultdict(list)}
        for side, table in found.items():
            for token in self.tokens:
                for part, until in self._spine(token, right=side):
                    table[part].append((token, until))
        return found

    @cached_property
    def _partners(self) -> dict[bool, dict[str, list[str]]]:
        """For True, by the right one of a merge: its left ones. For False the other way round."""
        found: dict[bool, dict[str, list[str]]] = {True: defaultdict(list), False: defaultdict(list)}
        for first, second in self._rank:
            found[True][second].append(first)
            found[False][first].append(second)
        return found


def harmless(forms: Iterable[str], edges: Edges, spell: Callable[[str], str]) -> set[str]:
    """The forms that, as one token each, leave no text longer than it is with the base.

    spell: text to byte-level spelling. With base tokens x·p over a form's left edge (p its first i bytes) and s·y
    over its right edge (s its bytes from j), the base spends 1 + m + 1 tokens, m on what lies between; without
    them the text spends x, the form and y. A form passes if the second is never more, for any i ≤ j.
    """
    spelled = {form: spell(form) for form in forms}
    inside = _inside(spelled.values(), edges.tokens)
    before, after = _crossing(spelled.values(), edges.tokens)
    space = max(edges.cost(spell(char), left=True) - len(edges.cut(spell(char))) for char in SPACES)

    def passes(form: str) -> bool:
        size = len(form)
        left, right = {0: space}, {size: 0}  # the base cuts white space from its last one, before a form too
        for at in range(1, size):
            # a form with a Latin edge is not found inside a Latin word
            over = [x for x in before.get(form[:at], ()) if not (_latin(form[0]) and _latin(x[-1]))]
            if over:
                left[at] = max(edges.cost(rest, left=True) for rest in over)
            over = [y for y in after.get(form[at:], ()) if not (_latin(form[-1]) and _latin(y[0]))]
            if over:
                right[at] = max(edges.cost(rest, left=False) for rest in over)
        for start, first in left.items():
            fewest = _fewest(form, start, edges.tokens)
            for end, last in right.items():
                if end >= start and first + 1 + last > (start > 0) + fewest[end] + (end < size):
                    return False
        return True

    return {form for form, text in spelled.items() if text not in inside and passes(text)}


def _latin(char: str) -> bool:
    return char.isascii() and char.isalnum()


def _crossing(forms: Iterable[str], tokens: Iterable[str]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """What base tokens hold beyond a form's edge: before each beginning of a form, and after each ending."""
    forms = set(forms)
    starts = {form[:at] for form in forms for at in range(1, len(form))}
    ends = {form[at:] for form in forms for at in range(1, len(form))}
    before: dict[str, set[str]] = defaultdict(set)
    after: dict[str, set[str]] = defaultdict(set)
    for token in tokens:
        for at in range(1, len(token)):
            if token[at:] in starts:
                before[token[at:]].add(token[:at])
            if token[:at] in ends:
                after[token[:at]].add(token[at:])
    return before, after


def _inside(forms: Iterable[str], tokens: Iterable[str]) -> set[str]:
    """The forms that are a proper part of a token."""
    forms = set(forms)
    sizes = sorted({len(form) for form in forms})
    found = set()
    for token in tokens:
        for size in sizes:
            if size >= len(token):
                break
            found |= {token[at : at + size] for at in range(len(token) - size + 1)} & forms
    return found


def _fewest(form: str, start: int, tokens: frozenset[str]) -> dict[int, int]:
    """For each end, the fewest tokens that spell form[start:end]."""
    fewest = {start: 0}
    for end in range(start + 1, len(form) + 1):
        ways = [fewest[at] + 1 for at in range(start, end) if at in fewest and form[at:end] in tokens]
        if ways:
            fewest[end] = min(ways)
    return {end: fewest.get(end, NEVER) for end in range(start, len(form) + 1)}
