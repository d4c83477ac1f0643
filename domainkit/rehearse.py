"""What each phase of a run works with in memory, beside the weights: its passes are made without any numbers.

Trunk and top run on the meta device, where tensors have shapes only; heads, which are small and look at values, run on
zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from domainkit.heap import LARGE
from domainkit.joint import companions
from domainkit.kinds import Kind, Prepared
from domainkit.model import decode, passing, rows, trunk
from domainkit.model.base import Base
from domainkit.model.batch import Batch, Row, batches, collate
from domainkit.model.split import Trunk
from domainkit.model.top import SHARED, Top
from domainkit.nets.loss import BLOCK
from domainkit.nets.meter import Meter
from domainkit.nets.words import PHRASES
from domainkit.spec import Training

FLOAT = 4  # bytes of a number of the activations, once they are read from the store


@dataclass(frozen=True)
class Need:
    """Bytes of tensors that come and go."""

    peak: int = 0  # at most
    kept: int = 0  # of tensors so small that the process keeps their memory when they go; at most as well

    @classmethod
    def of(cls, meter: Meter) -> Need:
        return cls(meter.peak, meter.kept)

    @classmethod
    def most(cls, needs: Iterable[Need]) -> Need:
        """Of computations that follow one another."""
        found = [cls(), *needs]
        return cls(max(need.peak for need in found), max(need.kept for need in found))

    def __add__(self, other: Need) -> Need:
        return Need(self.peak + other.peak, self.kept + other.kept)

    @classmethod
    def pieces(cls, size: int, piece: int) -> Need:
        """Tensors of `piece` bytes, `size` together."""
        return cls(size, size if piece < LARGE else 0)


@dataclass(frozen=True)
class Work:
    """What each phase works with."""

    terms: Need  # learning the rows of a glossary's tokens
    heads: Need  # solving heads that are not trained
    trunk: Need
    train: Need
    evaluate: Need


@dataclass(frozen=True)
class Rehearsal:
    """A run without weights. base and top are on the meta device."""

    base: Base
    top: Top
    kinds: Mapping[str, Kind]
    prepared: Mapping[str, Prepared]
    training: Training
    longest: int  # tokens of the longest sequence
    tokens: int  # distinct ones that go through the trunk

    def work(self) -> Work:
        """What the phases work with."""
        with torch.device("meta"):
            forward = self._forward()
            terms = self._terms() if self.base.added else Need()
            solved = Need.most(self._solved(name) for name in self.kinds)
        return Work(terms, solved, self._trunk(forward), self.train(), self._evaluation(forward))

    def train(self) -> Need:
        """One micro-batch of training."""
        leads = [(lead, *along) for lead, along in companions(self.prepared).items() if self.prepared[lead].train]
        return Need.most(self._step(names) for names in leads)

    @property
    def _stored(self) -> int:
        """Bytes of a token's activations, as batches have them."""
        return FLOAT * trunk.stored(self.base, self.training.depths)

    def _forward(self) -> Need:
        """One batch of the trunk."""
        ids = torch.zeros(max(1, trunk.BATCH // self.longest), self.longest, dtype=torch.long)
        with Meter() as meter:
            Trunk(self.base, self.training.layers, self.training.depths)(ids)
        return Need.of(meter)

    def _trunk(self, forward: Need) -> Need:
        """A shard is held until it is full, then put together, rounded, and made the bytes of a file; before, the dtype
        on disk is chosen, for which a sample's loss is computed."""
        batch = max(trunk.BATCH, self.longest)
        shard = min(self.tokens, trunk.SHARD + batch) * self._stored
        held = Need.pieces(shard, min(self.tokens, batch) * self._stored)
        rounded = Need.pieces(shard // 2, shard // 2)
        whole = Need.pieces(shard, shard) + rounded + rounded
        choosing = self._logits(BLOCK) if self.training.activations == "auto" else Need()
        return Need.most([held + forward, held + whole, choosing])

    def _logits(self, tokens: int) -> Need:
        """Logits of so many tokens, and as much again: a copy, or their softmax."""
        one = tokens * len(self.base.output_rows) * FLOAT
        return Need.pieces(2 * one, one)

    def _terms(self) -> Need:
        """Distilling rows through the first layers, then calibrating them on the output head."""
        vocabulary, width = self.base.output_rows.shape
        size = self.base.output_rows.element_size()
        embeds = torch.zeros(8, rows.BATCH // 8, width, dtype=self.base.model.dtype, requires_grad=True)
        with Meter() as meter:
            states = Trunk(self.base, max(1, self.base.depth - rows.DEPTH)).states(inputs_embeds=embeds)
            states.float().sum().backward()
        calibrating = self._logits(rows.BATCH) + Need(0 if size == FLOAT else vocabulary * width * FLOAT)
        grown = Need.pieces(vocabulary * width * size, vocabulary * width * size)
        return Need.most([Need.of(meter), calibrating, grown])

    def _solved(self, name: str) -> Need:
        """A head that is solved from labelled texts: words in float64, or a translator, whose solving works on meta."""
        prepared = self.prepared[name]
        if not prepared.labelled:
            return Need()
        if prepared.train:
            features = self.base.model.config.vocab_size + PHRASES
            return Need.pieces(24 * features * len(prepared.labels), 8 * features * len(prepared.labels))
        with Meter() as meter:
            self.kinds[name].head(self.base, prepared)
        return Need.of(meter)

    def _step(self, names: Sequence[str]) -> Need:
        """One micro-batch of the first of the tasks, and of those that come along."""
        rows = self.training.micro_batch or self.training.batch
        batch = self._batch(names[0], "train", rows * self.training.context)
        losses = [self._loss(name, batch, learn=True) for name in names]
        with torch.device("meta"), Meter() as meter:
            states = self._states(batch, {asked for asked, _ in losses})
            alive = Need(meter.now, meter.small)
            states.float().sum().backward()
        return Need.most([Need.of(meter), sum((need for _, need in losses), alive)])

    def _evaluation(self, forward: Need) -> Need:
        """Reading held-out texts, from the store and without it, and writing summaries."""
        found = [self._writing()] if any(type(k).__module__.endswith(".summary") for k in self.kinds.values()) else []
        for name, prepared in self.prepared.items():
            tested = sum(len(s.ids) for s in prepared.test)
            asked, loss = "states", self._logits(BLOCK)
            if prepared.train and self._head(name):
                asked, loss = self._loss(name, self._batch(name, "train", passing.BATCH), learn=False)
            batch = self._batch(name, "test", passing.BATCH)
            with torch.device("meta"), torch.no_grad(), Meter() as meter:
                self._states(batch, {asked})
            held = min(tested, passing.HELD) * self._stored
            if asked == "depths":
                held += min(tested, SHARED) * (self._stored + FLOAT * self.base.width)
            pieces = Need.pieces(held, min(tested, passing.BATCH) * self._stored)
            found.append(pieces + Need.most([Need.of(meter) + loss, forward]))
        return Need.most(found)

    def _writing(self) -> Need:
        """Prompts of many texts at once, through all layers, and their keys and values."""
        ids = torch.zeros(max(1, decode.BATCH // self.longest), self.longest, dtype=torch.long, device="meta")
        with torch.device("meta"), torch.no_grad(), Meter() as meter:
            self.base.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return Need.of(meter)

    def _batch(self, name: str, side: str, batch_tokens: int) -> Batch:
        """The largest batch of a task's sequences, with one number in place of each token's activations."""
        sequences = getattr(self.prepared[name], side)
        made = batches(sequences, row_tokens=self.training.context, batch_tokens=batch_tokens, seed=0)
        sizes = {s.digest: len(s.ids) for s in sequences}
        return collate(max(made, key=_area), lambda digest: np.zeros((sizes[digest], 1), np.float32))

    def _states(self, batch: Batch, asked: set[str]) -> Tensor:
        """What a task's head reads of a batch, from the top."""
        width, places = self.base.width, batch.position_ids.shape
        hidden = torch.zeros(*places, trunk.stored(self.base, self.training.depths))
        given = Batch(hidden, torch.zeros(places, dtype=torch.long), ())
        if "depths" in asked:
            return self.top.depths(given)
        if asked == {"below"}:
            return self.top.below(given)
        packed = len(batch.placed) > len(batch.hidden)
        causal: Any = self.top.model.get_base_model()
        out = causal.base_model(
            inputs_embeds=hidden[..., -width:].to(causal.dtype),
            position_ids=given.position_ids,
            attention_mask=torch.zeros(len(hidden), 1, places[1], places[1], dtype=torch.bool) if packed else None,
            use_cache=False,
        )
        return out.last_hidden_state.flatten(0, 1)

    def _head(self, name: str) -> nn.Module | None:
        """A task's head, not solved."""
        return self.kinds[name].head(self.base, replace(self.prepared[name], labelled=()))

    def _loss(self, name: str, batch: Batch, *, learn: bool) -> tuple[str, Need]:
        """Which states a task asks for, and what its loss of a batch works with."""
        prepared, head = self.prepared[name], self._head(name)
        own = {s.digest: s for s in prepared.train}
        batch = replace(batch, placed=tuple((at, own[s.digest]) for at, s in batch.placed if s.digest in own))
        standing = _Standing({name: head}, self.base.output_rows, len(self.training.depths), head is not None)
        with torch.set_grad_enabled(learn), Meter() as meter:
            loss = self.kinds[name].loss(cast(Top, standing), batch, prepared.labels)
            if learn:
                loss.backward()
        given = Need.pieces(-standing.size, standing.size)
        return standing.asked, Need.of(meter) + given


class _Standing:
    """Stands in for a top: gives zeros for states, and notes which ones were asked for and their bytes."""

    def __init__(self, heads: Mapping[str, nn.Module | None], output_weight: Tensor, depths: int, real: bool) -> None:
        self.heads, self.output_weight, self.more = heads, output_weight, depths
        self.device = torch.device("cpu" if real else "meta")
        self.asked, self.size = "", 0

    def states(self, batch: Batch, *, both_ways: bool = False) -> Tensor:
        return self._given("states", batch, 1)

    def below(self, batch: Batch) -> Tensor:
        return self._given("below", batch, self.more + 1)

    def depths(self, batch: Batch) -> Tensor:
        return self._given("depths", batch, self.more + 2)

    def _given(self, asked: str, batch: Batch, times: int) -> Tensor:
        places, width = batch.position_ids.numel(), self.output_weight.shape[1] * times
        given = torch.zeros(places, width, device=self.device, requires_grad=True)
        self.asked, self.size = asked, given.nbytes
        return given


def _area(packed: Sequence[Row]) -> int:
    """Tokens of a batch, padding included."""
    return len(packed) * max(sum(len(s.ids) for s in row) for row in packed)
