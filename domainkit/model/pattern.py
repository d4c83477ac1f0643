"""The pre-tokenizer of a byte-level BPE tokenizer, changed so that glossary forms stay in one piece."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own, spelled out
WORD = r"[\p{L}\p{M}\p{N}]"
LATIN = "0-9A-Za-z"  # at the edge of a Chinese form, such as A股
FAN = 8  # up to so many alternatives are tried one by one; more are searched by halves
END = ""  # marks the end of a word in the trie

_KEPT = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHER = [byte for byte in range(256) if byte not in _KEPT]
_CHARS = {**{byte: chr(byte) for byte in _KEPT}, **{byte: chr(256 + at) for at, byte in enumerate(_OTHER)}}

Step = dict[str, Any]  # one pre-tokenizer, as tokenizer.json writes it


def spell(text: str) -> str:
    """A text as byte-level BPE spells it: one visible character for each byte, by GPT-2's table."""
    return "".join(_CHARS[byte] for byte in text.encode())


def steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Step]:
    """The steps of a pre-tokenizer one after the other, the pattern inside a ByteLevel as a step of its own."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [step for part in pre_tokenizer["pretokenizers"] for step in steps(part)]
    if pre_tokenizer["type"] == "ByteLevel" and pre_tokenizer.get("use_regex", True):
        return [_split(GPT2), {**pre_tokenizer, "use_regex": False}]
    return [dict(pre_tokenizer)]


def with_forms(base: list[Step], chinese: Collection[str], english: Collection[str]) -> Step:
    """A pre-tokenizer that keeps each form in one piece and otherwise does what the steps `base` do.

    Chinese forms are split out first, wherever they stand. English ones, with or without a leading space, stand
    between word boundaries.
    """
    changed = [_split(_anywhere(chinese))] if chinese else []
    # A step cuts the pieces of the steps before it, so a form must be an alternative of each that would cut it.
    odd = [form for form in chinese if any(char.isascii() or not char.isalpha() for char in form)]  # 证券、期货; A股
    whole = [_whole(trie(odd))] if odd else []
    words = [_words(english)] if english else []
    front = list(whole)
    for at, step in enumerate(base):
        if step["type"] == "ByteLevel":
            return {"type": "Sequence", "pretokenizers": [*changed, *base[at:]]}
        if words and len(pieces(step, " net interest")) > 1:
            # In front of the base's own pattern the scan stands at a boundary anyway: a step of its own, which has
            # to look at every letter, takes several times as long.
            changed.append(_in_front([*whole, *words], step))
            front, words = [*whole, _whole(words[0])], []
        else:
            changed.append(_in_front(front, step))
    raise ValueError("no ByteLevel among the steps")


def pieces(step: Step, text: str) -> list[str]:
    """What one step makes of a text."""
    spec = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    tokenizer = Tokenizer.from_str(json.dumps({**spec, "pre_tokenizer": step}))
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def trie(words: Iterable[str], *, guard: str = "") -> str:
    """A regular expression for the longest of the words at a place.

    guard: characters, as inside [ ], that must not follow a word which ends in one of them.

    >>> trie(["bond", "bonds", "bank"])
    'b(?:ank|ond(?:s)?)'
    """
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for char in word:
            node = node.setdefault(char, {})
        node[END] = {}
    return _choice(root, re.compile(f"[{guard}]") if guard else None)


def _choice(node: Mapping[str, Any], guard: re.Pattern[str] | None) -> str:
    branches = [(char, re.escape(char) + _rest(char, node[char], guard)) for char in sorted(node) if char != END]
    return _halves(branches)


def _rest(char: str, node: Mapping[str, Any], guard: re.Pattern[str] | None) -> str:
    """What may follow `char`."""
    more = _choice(node, guard)
    guarded = f"(?!{guard.pattern})" if guard and guard.match(char) else ""
    if END not in node:
        return more if len(node) == 1 else f"(?:{more})"
    if guarded and more:
        return f"(?:{more}|{guarded})"
    return guarded or (f"(?:{more})?" if more else "")


def _halves(branches: list[tuple[str, str]]) -> str:
    """Alternatives, sorted by first character, so that a character finds its own in few steps."""
    if len(branches) <= FAN:
        return "|".join(regex for _, regex in branches)
    middle = len(branches) // 2
    first, last = re.escape(branches[0][0]), re.escape(branches[middle - 1][0])
    return f"(?=[{first}-{last}])(?:{_halves(branches[:middle])})|{_halves(branches[middle:])}"


def _anywhere(forms: Iterable[str]) -> str:
    """Chinese forms; one that begins or ends in a Latin letter or digit does not cut a Latin word there."""
    latin = re.compile(f"[{LATIN}]")
    edge = sorted(form for form in forms if latin.match(form))
    plain = sorted(set(forms) - set(edge))
    firsts = "".join(re.escape(char) for char in sorted({form[0] for form in plain}))
    # asked first, the class of all first characters passes over the others quickly
    parts = [f"(?=[{firsts}])(?:{trie(plain, guard=LATIN)})"] * bool(plain)
    parts += [f"(?<![{LATIN}])(?:{trie(edge, guard=LATIN)})"] * bool(edge)
    return "|".join(parts)


def _words(forms: Iterable[str]) -> str:
    """English forms between word boundaries."""
    spaced = [form[1:] for form in forms if form.startswith(" ")]
    bare = [form for form in forms if not form.startswith(" ")]
    parts = [f" (?:{trie(spaced)})"] * bool(spaced)  # a space is a boundary by itself
    parts += [f"(?<!{WORD})(?:{trie(bare)})"] * bool(bare)
    return f"(?:{'|'.join(parts)})(?!{WORD})"


def _whole(regex: str) -> str:
    """What is a whole piece."""
    return rf"\A(?:{regex})\z"


def _in_front(first: list[str], step: Step) -> Step:
    """The step with other alternatives first; as it is when what they match would not stay a piece of its own."""
    kept = step.get("behavior") == "Isolated" or (step.get("behavior") == "Removed" and step.get("invert"))
    if step["type"] != "Split" or not kept or not first:
        return step
    pattern = step["pattern"]
    own = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
    return {**step, "pattern": {"Regex": "|".join([*first, own])}}


def _split(regex: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
