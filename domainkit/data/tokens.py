"""Cut examples into token sequences, counting the bytes each one spells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from domainkit.types import Example, Sequence


def sequences(example: Example, tokenizer: Any, prefix: int, *, context: int, slice: str = "") -> Iterator[Sequence]:
    """Disjoint windows of at most `context` tokens, each opened by the prefix token, so that every token of the
    text is predicted exactly once (as lm-evaluation-harness rolls a document).

    Windows begin and end between characters: a character whose bytes are several tokens is never split, so the
    bytes of a window are those of its text. A document longer than the context simply becomes several windows.
    tokenizer: a fast Hugging Face tokenizer. context: tokens, the prefix included.
    """
    encoded = tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    group = example.group or example.id
    start = 0
    while start < len(ids):
        end = min(start + context - 1, len(ids))
        while start < end < len(ids) and offsets[end][0] < offsets[end - 1][1]:
            end -= 1  # token `end` continues the character of the token before it
        if end == start:  # one character fills the window: cannot happen with a context worth the name
            end = min(start + context - 1, len(ids))
        first = 0 if start == 0 else offsets[start][0]
        last = len(example.text) if end == len(ids) else offsets[end][0]
        size = len(example.text[first:last].encode())
        yield Sequence((prefix, *ids[start:end]), size, group, slice, example.label)
        start = end


def overlapping(example: Example, tokenizer: Any, prefix: int, *, context: int, overlap: int) -> Iterator[Sequence]:
    """Windows of at most `context` tokens, the prefix included, that share `overlap` tokens with their neighbours, each
    token with its characters in the example: for tasks that say something of every token and want both sides of it.

    overlap: tokens; at most half of the context is shared.
    """
    encoded = tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    group, size = example.group or example.id, context - 1
    step = max(1, size - min(overlap, size // 2))
    for start in range(0, max(1, len(ids) - size + step), step):
        part = tuple(offsets[start : start + size])
        if part:
            text = example.text[part[0][0] : part[-1][1]]
            yield Sequence((prefix, *ids[start : start + size]), len(text.encode()), group, offsets=((0, 0), *part))
