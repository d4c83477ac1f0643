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
