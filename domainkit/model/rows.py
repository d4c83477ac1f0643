"""The embedding rows of new tokens: a start that means something, then distilled, then frozen.

A new token stands where several tokens of the base stood. Its row is right when the layers above cannot tell the
difference, so it is learned by making them not tell (Token Distillation, arXiv 2505.20133): the hidden states of an
early layer under the extended tokenizer match those under the base's own, wherever both have read the same text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedTokenizerFast

from domainkit.model.base import Base
from domainkit.model.ondisk import held
from domainkit.model.packed import is_packed
from domainkit.model.split import Trunk, last_states
from domainkit.model.vocab import Vocabulary

DEPTH = 4  # layers whose output is matched; in a shallow model all but the last
BATCH = 1024  # padded tokens per step
RATE = 1e-2  # of Adam, per row
PIECE = re.compile(r".{1,160}(?:(?<=[，。；：、])|(?=\s)|$)")  # a window: part of a line, cut where no term goes on
EXAMPLES = 4  # windows wanted for every new token
SAMPLE = 64  # windows that tell which directions the output head looks at
UNSEEN = 0.3  # mean square of the states along a direction of which the head sees little
CHUNK = 128  # tokens of a stretch of text that frequencies are calibrated on
SMOOTH = 0.1  # occurrences that a token without any is given
SHIFT = (-4.0, 2.0)  # of a logit, nats; more moves English little and costs Chinese
KEEP = 0.01  # price of a squared change of a logit, where input and output share the rows

NONE: Mapping[int, Sequence[int]] = MappingProxyType({})


@dataclass(frozen=True)
class Rows:
    """Rows of the new tokens, in the order of the vocabulary."""

    input: Tensor  # (new tokens, width)
    output: Tensor | None = None  # (new tokens, width) of the output head; None when it shares the input's

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the values."""
        parts = [self.input] + ([] if self.output is None else [self.output])
        return sha256(b"".join(p.float().contiguous().numpy().tobytes() for p in parts)).hexdigest()


@dataclass(frozen=True)
class Window:
    """A piece of text as the base and as the extended tokenizer cut it."""

    old: tuple[int, ...]  # base token ids, the prefix token first
    new: tuple[int, ...]  # extended ids, the prefix token first
    same: tuple[tuple[int, int], ...]  # (position in old, in new) where both have read the same characters


def mean_rows(base: Base, vocabulary: Vocabulary, counterparts: Mapping[int, Sequence[int]] = NONE) -> Rows:
    """Each row the mean of what the form's own tokens mean and, if given, of what its counterpart's mean.

    counterparts: index in the vocabulary → base token ids of the standard form in the other language.
    """

    def means(weight: Tensor) -> Tensor:
        rows = [
            torch.stack([weight[list(ids)].float().mean(0) for ids in (own, counterparts.get(i, ())) if ids]).mean(0)
            for i, own in enumerate(vocabulary.pieces)
        ]
        return torch.stack(rows).cpu()

    return Rows(means(base.input_rows), None if base.tied else means(base.output_rows))


def start_rows(base: Base, vocabulary: Vocabulary, rows: Rows, moment: Tensor | None) -> Rows:
    """Where distillation starts from: read like the last of the form's own tokens, written like `rows`, their mean.

    The layers above read a word at its last token. Where the output head shares the rows, its states look along few
    directions (moment: their second moment; None where it has rows of its own); there the mean stays, and only what
    they do not see is exchanged.
    """
    last = base.input_rows[[ids[-1] for ids in vocabulary.pieces]].float().cpu()
    if moment is None:
        return Rows(last, rows.output)
    unseen = torch.linalg.inv(torch.eye(base.width) + moment.cpu() / UNSEEN)  # 1 where the head looks nowhere, else 0
    return Rows(rows.input + (last - rows.input) @ unseen)


def random_rows(base: Base, vocabulary: Vocabulary, seed: int) -> Rows:
    """What resizing an embedding gives: noise with the mean and spread of the base's own rows."""
    draw = torch.Generator().manual_seed(seed)

    def noise(weight: Tensor) -> Tensor:
        values = weight.float().cpu()
        return values.mean(0) + values.std(0) * torch.randn(len(vocabulary.forms), values.shape[1], generator=draw)

    return Rows(noise(base.input_rows), None if base.tied else noise(base.output_rows))


def extend(base: Base, tokenizer: PreTrainedTokenizerFast, first: int, rows: Rows) -> Base:
    """The base with `rows` as tokens `first` and up, frozen, and the tokenizer that makes use of them.

    The model of `base` itself grows: whoever keeps `base` sees the same outputs for its own tokens.
    """
    size = first + len(rows.input)
    given = [rows.input] if rows.output is None else [rows.input, rows.output]
    own = [part.to(base.model.device, base.model.dtype) for part in given]  # in the base's own precision
    make_room(base, first, size)
    with torch.no_grad():
        for module, part in ((base.embedding, own[0]), (base.head, own[-1])):
            if is_packed(module):
                vars(module)["added"] = first, part
            else:
                module.weight[first:size] = part
    base.model.requires_grad_(False)
    held = Rows(*(part.cpu() for part in own))
    return replace(base, tokenizer=tokenizer, plain=base.tokenizer, added=tuple(range(first, size)),
                   rows=held.fingerprint)  # fmt: skip


def make_room(base: Base, first: int, size: int) -> None:
    """Let embedding and head have `size` rows, those from `first` on unknown; some bases have rows to spare."""
    if is_packed(base.embedding):
        empty = torch.empty(size - first, base.width, dtype=base.model.dtype, device=base.model.device)
        for module in (base.embedding, base.head):
            vars(module)["added"] = first, empty
        base.model.config.vocab_size = max(size, int(base.model.config.vocab_size))
    elif size > len(base.embedding.weight):
        cast(Any, base.model).resize_token_embeddings(size, mean_resizing=False)


def windows(texts: Iterable[str], base: Base, tokenizer: PreTrainedTokenizerFast, first: int, *,
            tokens: int) -> list[Window]:  # fmt: skip
    """Windows of real text, up to `tokens` base tokens: each new token is met once before any is met again.

    tokenizer: the extended one. first: id of the first new token.
    """
    left = sorted(_cut(texts, base, tokenizer, first), key=lambda w: sha256(repr(w.new).encode()).digest())
    chosen: list[Window] = []
    met: Counter[int] = Counter()
    for wanted in range(1, EXAMPLES + 1):
        passed = []
        for window in left:
            new = [i for i in window.new if i >= first]
            if tokens > 0 and any(met[i] < wanted for i in new):
                chosen.append(window)
                tokens -= len(window.old)
                met.update(new)
            else:
                passed.append(window)
        left = passed
    return chosen


def distil(base: Base, first: int, rows: Tensor, found: Sequence[Window], *, seed: int, depth: int = DEPTH,
           rate: float = RATE, moment: Tensor | None = None,
           progress: Callable[[int], None] = lambda tokens: None) -> Tensor:  # fmt: skip
    """Learn `rows` (new tokens, width) from windows; the base stays as it is. Returns the learned rows.

    One pass, Adam on the rows that a batch holds. moment: of the states that enter the output head, given where that
    shares the rows; they are then kept from changing the logits they start with, for what a token means when read
    must not cost what it means when written. progress is told the base tokens just read.
    """
    start = rows.to(base.model.device)
    student = nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=True)
    optimizer = torch.optim.SparseAdam(student.parameters(), lr=rate)
    batches = _batches(found)
    trunk = Trunk(base, max(1, base.depth - depth))
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    with held(trunk.layers):
        for step, number in enumerate(order):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / len(batches))
            batch = batches[number]
            loss = _mismatch(base, trunk, first, student, batch, _wanted(trunk, batch))
            if moment is not None:
                used = torch.tensor(sorted({i - first for w in batch for i in w.new if i >= first}))
                moved = student(used.to(start.device)) - start[used]
                loss = loss + KEEP * (moved @ moment * moved).sum(-1).mean()  # mean squared change of a logit
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress(sum(len(w.old) for w in batch))
    return student.weight.detach().cpu()


@torch.no_grad()
def second_moment(base: Base, found: Sequence[Window]) -> Tensor:
    """Mean outer product of the states that enter the output head, on a sample of the base's text: (width, width)."""
    states = torch.cat(list(_states(base, [w.old for w in found[:SAMPLE]])))
    return states.T @ states / len(states)


def _states(base: Base, texts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """The states that enter the output head, text by text: (tokens, width)."""
    batches = [texts[at : at + 8] for at in range(0, len(texts), 8)]
    ids = [_padded(batch).to(base.model.device) for batch in batches]
    for batch, out in zip(batches, last_states(base, ids), strict=True):
        yield from (row[: len(text)].float() for text, row in zip(batch, out, strict=True))


@torch.no_grad()
def calibrate(base: Base, texts: Sequence[Sequence[int]], rounds: int = 3) -> Tensor:
    """Output rows with which each new token is expected as often as the texts have it: (new tokens, width).

    A row made of the parts of a term leaves the term far too likely, or too rare, at every place. Its logit is moved
    by one number, along the mean of the states that the head sees: a step so short that reading hardly notices.
    base: with the rows to be calibrated. texts: token ids of real text, each without the prefix.
    """
    first, device = base.added[0], base.model.device
    weight = base.output_rows.float()
    counts = torch.zeros(len(weight), device=device)
    for ids in texts:
        counts += torch.bincount(torch.tensor(ids, device=device), minlength=len(counts))
    wanted = (counts[first:] + SMOOTH) / counts.sum()
    cut = [ids[at : at + CHUNK] for ids in texts for at in range(0, len(ids), CHUNK)]
    drawn = sorted(cut, key=lambda ids: sha256(repr(ids).encode()).digest())[:SAMPLE]
    states = torch.cat(list(_states(base, [(base.prefix_id, *ids) for ids in drawn])))  # (tokens, width)
    rows, middle = weight[first:], states.mean(0)
    along = states @ middle / middle.square().sum()  # 1 in the mean
    shift = torch.zeros(len(rows), device=device)
    for _ in range(rounds):
        expected = torch.zeros_like(shift)
        for part, lean in zip(states.split(BATCH), along.split(BATCH), strict=True):
            logits = part @ weight.T
            logits[:, first:] += lean[:, None] * shift
            expected += logits.softmax(-1)[:, first:].sum(0)
        shift = (shift + (wanted * len(states) / expected.clamp(min=1e-12)).log()).clamp(*SHIFT)
    return (rows + shift[:, None] * middle / middle.square().sum()).cpu()


@torch.no_grad()
def mismatch(base: Base, first: int, variants: Mapping[str, Tensor], found: Sequence[Window], *,
             depth: int = DEPTH) -> dict[str, float]:  # fmt: skip
    """How well the layers can tell the new tokens from the old, by each kind of rows (new tokens, width).

    Mean of 1 - cosine of their states, 0 to 2.
    """
    students = {name: nn.Embedding.from_pretrained(rows.to(base.model.device)) for name, rows in variants.items()}
    trunk = Trunk(base, max(1, base.depth - depth))
    losses: dict[str, list[float]] = {name: [] for name in variants}
    with held(trunk.layers):
        for batch in _batches(found):
            wanted = _wanted(trunk, batch)
            for name, student in students.items():
                losses[name].append(float(_mismatch(base, trunk, first, student, batch, wanted)))
    return {name: sum(of) / max(len(of), 1) for name, of in losses.items()}


@torch.no_grad()
def _wanted(trunk: Trunk, batch: Sequence[Window]) -> Tensor:
    """The states of the base's own tokens, where new ones are compared with them: (places, width)."""
    row, old = zip(*((row, old) for row, w in enumerate(batch) for old, _ in w.same), strict=True)
    return trunk(_padded([w.old for w in batch]).to(trunk.device))[row, old].float()


def _mismatch(base: Base, trunk: Trunk, first: int, student: nn.Embedding, batch: Sequence[Window],
              wanted: Tensor) -> Tensor:  # fmt: skip
    row, new = zip(*((row, new) for row, w in enumerate(batch) for _, new in w.same), strict=True)
    ids = _padded([w.new for w in batch]).to(base.model.device)
    added = ids >= first
    known = base.embedding(ids.masked_fill(added, 0))
    embeds = torch.where(added[..., None], student((ids - first).clamp(min=0)).to(known.dtype), known)
    states = trunk.states(inputs_embeds=embeds)[row, new].float()
    return 1 - cosine_similarity(states, wanted, dim=-1).mean()  # a norm follows: only directions count


def _cut(texts: Iterable[str], base: Base, tokenizer: PreTrainedTokenizerFast, first: int) -> Iterator[Window]:
    """A window for every piece of text that holds a new token; the loss begins where the first one is read."""
    for text in texts:
        pieces = PIECE.findall(text)
        if not pieces:
            continue
        for old, new in zip(*(_encode(t, pieces) for t in (base.tokenizer, tokenizer)), strict=True):
            since = next((j for j, i in enumerate(new.ids) if i >= first), None)
            if since is not None:
                ends = {end: i for i, end in enumerate(old.ends)}
                same = ((ends[e], j) for j, e in enumerate(new.ends) if j >= since and e in ends)
                prefix = base.prefix_id
                yield Window((prefix, *old.ids), (prefix, *new.ids), tuple((i + 1, j + 1) for i, j in same))


@dataclass(frozen=True)
class _Encoded:
    ids: Sequence[int]
    ends: Sequence[int]  # character after each token's last one; -1 - index where the next token goes on with it


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[_Encoded]:
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found: list[_Encoded] = []
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        starts = [start for start, _ in offsets[1:]] + [len(texts[len(found)])]
        ends = [
            end if end <= after else -1 - i for i, ((_, end), after) in enumerate(zip(offsets, starts, strict=True))
        ]
        found.append(_Encoded(ids, ends))
    return found


def _batches(found: Sequence[Window]) -> list[list[Window]]:
    """Windows of similar length together, at most BATCH padded tokens of the base."""
    batches: list[list[Window]] = []
    for window in sorted(found, key=lambda w: (-len(w.old), w.old)):
        if not batches or len(batches[-1][0].old) * (len(batches[-1]) + 1) > BATCH:
            batches.append([])
        batches[-1].append(window)
    return batches


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(rows, longest) int64, zeros on the right: a causal decoder never looks there."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
