"""Glossary terms as single tokens of a byte-level BPE tokenizer, inside a standard tokenizer.json.

Lossless: every text decodes to itself, a text without terms keeps its ids, and no text becomes longer.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from domainkit.glossary import Glossary, is_chinese
from domainkit.model.crossing import Edges, harmless
from domainkit.model.pattern import spell, steps, with_forms
from domainkit.progress import say

UNSUITED = "not a byte-level BPE tokenizer"
LONGER = "could make some text longer"
UNUSED = "never occurs"
KNOWN = "one base token already"
DIGITS = "holds digits the base splits"
EDGE = "does not begin and end with a letter or digit"
CONTROL = "holds a control character"
CUT = "cut by the base before it is looked up"
BATCH = 256  # texts encoded together


@dataclass(frozen=True)
class Vocabulary:
    """The new tokens of an extended tokenizer."""

    forms: tuple[str, ...]  # surface form of each, e.g. "逾期", " delinquency"; forms[i] has the id first + i
    terms: tuple[str, ...]  # the glossary term each belongs to
    first: int  # id of forms[0]: number of rows of the base's embedding, or the tokenizer's, whichever is more
    pieces: tuple[tuple[int, ...], ...]  # base token ids of each form
    left_out: Mapping[str, int]  # why a form has no row → how many


def choose(glossary: Glossary, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, rows: int) -> Vocabulary:
    """Which surface forms of a glossary's terms get a token of their own.

    Each term's first Chinese term and its English one after a space always do, where that can harm no text. Other
    forms (without the space, capitalized, Title Case, CAPITALS, variants) do if they occur in `texts`.
    rows: of the base's embedding; new ids start there.

    A tokenizer that is not byte-level BPE (SentencePiece, WordPiece) gets no new token: its own rules for spaces,
    unknown characters and continued words leave no lossless way in.
    """
    backend = tokenizer.backend_tokenizer
    spec = _spec(tokenizer)
    first = max(rows, 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1))
    if not _byte_level(spec):
        say(f"{glossary.name}: the tokenizer is not byte-level BPE, so terms get no tokens of their own")
        return Vocabulary((), (), first, (), {UNSUITED: len(glossary.terms)} if glossary.terms else {})
    candidates = _candidates(glossary)
    texts = list(texts)
    reasons = _refused(candidates, spec, backend) | _unseen(candidates, texts)
    admitted = [form for form in candidates if form not in reasons]
    occurs = _occurring(_extended(spec, admitted, first), admitted, first, texts, reasons) if admitted else set()
    reasons |= {
        form: UNUSED for form in admitted if form not in reasons and form not in occurs and not candidates[form][1]
    }
    forms = tuple(form for form in admitted if form not in reasons)
    pieces = tuple(tuple(e.ids) for e in backend.encode_batch(list(forms), add_special_tokens=False))
    counts = Counter(reasons.values())
    return Vocabulary(forms, tuple(candidates[form][0] for form in forms), first, pieces, dict(counts.most_common()))


def inject(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer in which each form of the vocabulary is one token; the given one stays as it is."""
    return spoken_by(tokenizer, extended(tokenizer, vocabulary)) if vocabulary.forms else deepcopy(tokenizer)


def extended(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> str:
    """The tokenizer.json of `inject`; spelling it out takes a second for ten thousand forms."""
    return _extended(_spec(tokenizer), vocabulary.forms, vocabulary.first)


def spoken_by(tokenizer: PreTrainedTokenizerFast, spelled: str) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with another tokenizer.json."""
    with tempfile.TemporaryDirectory() as folder:  # the road every saved tokenizer takes, so nothing is forgotten
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(spelled, encoding="utf-8")
        new = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    new.name_or_path = tokenizer.name_or_path
    return new


def _spec(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """tokenizer.json as Python values."""
    return dict(json.loads(tokenizer.backend_tokenizer.to_str()))


def _byte_level(spec: Mapping[str, Any]) -> bool:
    model, parts = spec["model"], steps(spec["pre_tokenizer"])
    plain = not any(model.get(key) for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"))
    # add_prefix_space puts a space before every piece, also after a form that was split out
    levels = [step for step in parts if step["type"] == "ByteLevel"]
    return model["type"] == "BPE" and plain and bool(levels) and not any(step["add_prefix_space"] for step in levels)


def _candidates(glossary: Glossary) -> dict[str, tuple[str, bool]]:
    """Surface form → (term id, whether it gets a row without occurring). What the glossary says comes first."""
    found: dict[str, tuple[str, bool]] = {}
    for term in glossary.terms:
        found.setdefault(term.zh[0], (term.id, True))
        found.setdefault(f" {term.en}", (term.id, True))
    for shapes in (lambda form: [form], _cases):
        for term in glossary.terms:
            for form in term.forms:
                for shape in [form] if is_chinese(form) else (s for case in shapes(form) for s in (case, f" {case}")):
                    found.setdefault(shape, (term.id, False))
    return found


def _cases(form: str) -> list[str]:
    """How a form may be capitalized: as it is, and at the start of a sentence or in a title if it is all lower case."""
    if form != form.lower():
        return [form]
    title = re.sub(r"(?<![\w'’])[^\W\d_]", lambda match: match[0].upper(), form)
    words = re.sub(r"(?<!\S)[^\W\d_]", lambda match: match[0].upper(), form)  # Non-performing Loan
    short = re.sub(r"(?<=\s)(And|At|By|For|In|Of|On|Or|The|To|With)(?=\s)", lambda match: match[0].lower(), title)
    return [form, form[:1].upper() + form[1:], title, words, short, form.upper()]


def _refused(candidates: Iterable[str], spec: dict[str, Any], backend: Tokenizer) -> dict[str, str]:
    """Form → why it cannot have a token."""
    splits_digits = len(backend.pre_tokenizer.pre_tokenize_str("00")) > 1
    reachable = _reachable(spec)
    reasons = {}
    chinese = []
    for form in candidates:
        key = spell(form)
        if not form.isprintable():
            reasons[form] = CONTROL
        elif not (form.removeprefix(" ")[:1].isalnum() and form[-1:].isalnum()):
            reasons[form] = EDGE
        elif key in reachable:
            reasons[form] = KNOWN
        elif splits_digits and re.search(r"\d", form):
            reasons[form] = DIGITS
        elif is_chinese(form):
            chinese.append(form)
    passed = harmless(chinese, Edges(spec["model"], reachable), spell)
    return reasons | {form: LONGER for form in chinese if form not in passed}


def _unseen(candidates: Mapping[str, tuple[str, bool]], texts: Iterable[str]) -> dict[str, str]:
    """The English forms that need to occur and have a word that is nowhere in the texts: most of them, found fast."""
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    english = [form for form, (_, given) in candidates.items() if not given and not is_chinese(form)]
    return {form: UNUSED for form in english if not words.issuperset(re.findall(r"\w+", form))}


def _occurring(extended: str, forms: list[str], first: int, texts: Iterable[str], reasons: dict[str, str]) -> set[str]:
    """The forms that occur in the texts. A form that the extended tokenizer does not keep whole goes to reasons."""
    tokenizer = Tokenizer.from_str(extended)
    for at, encoding in enumerate(tokenizer.encode_batch(forms, add_special_tokens=False)):
        if encoding.ids != [first + at]:
            reasons[forms[at]] = CUT
    seen: set[int] = set()
    stream = iter(texts)
    while batch := list(islice(stream, BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            seen.update(encoding.ids)
    return {form for at, form in enumerate(forms) if first + at in seen}


def _extended(spec: dict[str, Any], forms: Iterable[str], first: int) -> str:
    """tokenizer.json with the forms as tokens from the id `first` on."""
    model = dict(spec["model"])
    vocab, reachable = dict(model["vocab"]), _reachable(spec)
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    dead = {token for token in vocab if token not in reachable and token not in special}
    # Looked up whole, a token that no merges reach would appear where the base never writes it. A space keeps its
    # new name out of every text.
    vocab = {f"unused {at}" if token in dead else token: at for token, at in vocab.items()}
    model["merges"] = [pair for pair in model["merges"] if not dead & {*_pair(pair), "".join(_pair(pair))}]
    vocab |= special  # else a reader numbers them anew, after ours
    vocab |= {f"unused {at}": at for at in range(1 + max(vocab.values()), first)}
    forms = list(forms)
    vocab |= {spell(form): first + at for at, form in enumerate(forms)}
    chinese = [form for form in forms if is_chinese(form)]
    english = [form for form in forms if not is_chinese(form)]
    pre_tokenizer = with_forms(steps(spec["pre_tokenizer"]), chinese, english)
    model |= {"vocab": vocab, "ignore_merges": True}
    return json.dumps({**spec, "pre_tokenizer": pre_tokenizer, "model": model}, ensure_ascii=False)


def _reachable(spec: Mapping[str, Any]) -> set[str]:
    """The vocabulary without special tokens and without tokens that the base can never write."""
    model = spec["model"]
    tokens = sorted(set(model["vocab"]) - {token["content"] for token in spec["added_tokens"]})
    if model.get("ignore_merges"):
        return set(tokens)
    merges = BPE(model["vocab"], [_pair(pair) for pair in model["merges"]])
    return {token for token in tokens if [part.value for part in merges.tokenize(token)] == [token]}


def _pair(merge: Any) -> tuple[str, str]:
    """A merge, in the old or the new way of writing it."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second
