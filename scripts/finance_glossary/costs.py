"""What a text costs in tokens of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

BASE = Path.home() / ".cache" / "domainkit" / "bases" / "smollm2-135m" / "tokenizer.json"


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BASE))


def costs(texts: Sequence[str]) -> list[int]:
    """Base tokens of each text."""
    return [len(one.ids) for one in tokenizer().encode_batch(list(texts), add_special_tokens=False)]


def cost(text: str) -> int:
    return costs([text])[0]
