"""Teach a base the terms of a glossary: tokens for them, rows that mean something, and proof that they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from domainkit.glossary import Glossary, is_chinese
from domainkit.model.base import Base
from domainkit.model.derived import derive
from domainkit.model.rows import (
    Rows,
    Window,
    calibrate,
    distil,
    extend,
    make_room,
    mean_rows,
    mismatch,
    random_rows,
    second_moment,
    start_rows,
    windows,
)
from domainkit.model.vocab import Vocabulary, choose, extended, inject, spoken_by
from domainkit.progress import bar, say

CHECK = 1_500  # held-out tokens that the rows are compared on


@dataclass(frozen=True)
class Taught:
    """A base that speaks the terms, and what it took."""

    base: Base
    vocabulary: Vocabulary
    mismatch: Mapping[str, float]  # "random", "mean", "distilled", … → see rows.mismatch, on held-out text


@dataclass(frozen=True)
class _Learned:
    """What `teach` adds to a base."""

    vocabulary: Vocabulary
    tokenizer: str = ""  # tokenizer.json with the vocabulary's forms
    rows: Rows | None = None
    mismatch: Mapping[str, float] = field(default_factory=dict)


def teach(base: Base, glossary: Glossary, learn: Sequence[str], check: Sequence[str], *, tokens: int, seed: int,
          cache: Path) -> Taught:  # fmt: skip
    """Give the terms of `glossary` tokens of their own and learn their embedding rows.

    learn: the texts that decide which forms get a token and that the rows are distilled on. check: texts kept from
    that, on which the rows are compared. tokens: base tokens to distil on; 0 leaves the mean rows. cache: folder that
    keeps what was learned (`derive`), so that a second run with the same base, terms and texts finds it.
    """
    of = [base.origin, glossary.sha256, list(learn), list(check), tokens, seed]
    learned = derive(cache, "rows", of, lambda: _learned(base, glossary, learn, check, tokens, seed))
    if learned.rows is None:
        return Taught(base, learned.vocabulary, {})
    tokenizer = spoken_by(base.tokenizer, learned.tokenizer)
    grown = extend(base, tokenizer, learned.vocabulary.first, learned.rows)
    return Taught(grown, learned.vocabulary, learned.mismatch)


def _learned(base: Base, glossary: Glossary, learn: Sequence[str], check: Sequence[str], tokens: int,
             seed: int) -> _Learned:  # fmt: skip
    say(f"finding the terms of {glossary.name} in {len(learn):,} documents …")
    vocabulary = choose(glossary, base.tokenizer, learn, rows=len(base.embedding.weight))
    if not vocabulary.forms:
        return _Learned(vocabulary)
    spelled = extended(base.tokenizer, vocabulary)
    rows, first = mean_rows(base, vocabulary), vocabulary.first
    if not tokens:
        return _Learned(vocabulary, spelled, rows)
    tokenizer = spoken_by(base.tokenizer, spelled)
    found = windows(_with_pairs(glossary, learn), base, tokenizer, first, tokens=tokens)
    distilled = _distilled(base, tokenizer, vocabulary, rows, found, learn, seed)
    say(f"comparing the new tokens with the old on {CHECK:,} tokens of other text …")
    held = windows(check, base, tokenizer, first, tokens=CHECK)
    variants = {
        "random": random_rows(base, vocabulary, seed).input,
        "mean, with translation": mean_rows(base, vocabulary, counterparts(base, glossary, vocabulary)).input,
        "mean": rows.input,
        "distilled": distilled.input,
    }
    return _Learned(vocabulary, spelled, distilled, mismatch(base, first, variants, held))


def reserve(base: Base, glossary: Glossary, learn: Sequence[str], *, tokens: int) -> Taught:
    """`teach` for a base without weights: the same tokens, and rows that hold nothing.

    The texts are cut as they are for distilling, so that this process comes to hold what that one does.
    """
    vocabulary = choose(glossary, base.tokenizer, learn, rows=len(base.embedding.weight))
    if not vocabulary.forms:
        return Taught(base, vocabulary, {})
    size = vocabulary.first + len(vocabulary.forms)
    make_room(base, vocabulary.first, size)
    base.model.requires_grad_(False)
    tokenizer = inject(base.tokenizer, vocabulary)
    if tokens:
        windows(_with_pairs(glossary, learn), base, tokenizer, vocabulary.first, tokens=tokens)
    added = tuple(range(vocabulary.first, size))
    return Taught(replace(base, tokenizer=tokenizer, plain=base.tokenizer, added=added), vocabulary, {})


def _distilled(base: Base, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, mean: Rows,
               found: Sequence[Window], texts: Sequence[str], seed: int) -> Rows:  # fmt: skip
    """Rows that read like the tokens they stand for, and are written as often as the texts have them."""
    moment = second_moment(base, found) if base.tied else None
    start = start_rows(base, vocabulary, mean, moment)
    with bar("terms", sum(len(window.old) for window in found)) as advance:
        learned = distil(base, vocabulary.first, start.input, found, seed=seed, moment=moment, progress=advance)
    grown = extend(base, tokenizer, vocabulary.first, Rows(learned, start.output))
    output = calibrate(grown, tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])
    return Rows(output) if base.tied else Rows(learned, output)


def counterparts(base: Base, glossary: Glossary, vocabulary: Vocabulary) -> dict[int, list[int]]:
    """For each new token the base's tokens of the standard term in the other language."""
    terms = {term.id: term for term in glossary.terms}

    def other(form: str, term_id: str) -> list[int]:
        term = terms[term_id]
        return base.tokenizer.encode(f" {term.en}" if is_chinese(form) else term.zh[0], add_special_tokens=False)

    pairs = zip(vocabulary.forms, vocabulary.terms, strict=True)
    return {i: other(form, term_id) for i, (form, term_id) in enumerate(pairs)}


def _with_pairs(glossary: Glossary, texts: Iterable[str]) -> Iterable[str]:
    """The texts, then a line for each term: what no text holds is met at least beside its translation."""
    yield from texts
    yield from (f"{term.zh[0]}: {term.en}" for term in glossary.terms)
