"""Relations between the concepts of a document: pairs of concepts, each read from the whole document's view of both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from domainkit.data.pairs import FACTS, KINDS, Pairs

SIZE = 128  # of a token's, a concept's and a pair's summary
KIND = 32  # numbers for what a concept is a kind of
VIEWS, VIEW = 4, 32  # looks at the document that each pair takes, and the size of what they compare
DROPOUT = 0.4
READERS = 3  # that learn by themselves and are averaged: one alone swings by a point of F1 with its seed
TYPING = 0.1  # weight of telling entity types, beside that of a pair
TOLD = 0.4  # probability over the threshold from which a relation is told
PLACES = 14  # what is known of a token beside a pair; see `_places`
REACH = 8.0  # tokens over which nearness to a mention fades


class Relations(nn.Module):
    """Which relations hold between pairs of concepts, as several readers see it who learn apart.

    mask: (relations, entity labels, entity labels) bool, what each relation may link; it is part of the state, and
    rules out all else in training and in decoding. facts: (pairs, FACTS) of the training data, for their scale.
    """

    mask: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, depths: int, mask: Tensor, facts: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        facts = torch.zeros(1, FACTS) if facts is None else facts
        self.register_buffer("mean", facts.mean(0))
        self.register_buffer("scale", 1 / (facts.std(0, correction=0) + 1e-3))
        self.readers = nn.ModuleList(_Reader(width * depths, *mask.shape[1::-1]) for _ in range(READERS))

    def forward(self, states: Sequence[Tensor], pairs: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]]:
        """states: for each window (tokens, depths * width), normed → from each reader the logits of all windows' pairs
        (pairs, 1 + relations), the first one that of the threshold, and of their mentions (mentions, entity labels)."""
        device, entities = self.mask.device, self.mask.shape[1]
        facts = [(torch.from_numpy(one.facts).to(device) - self.mean) * self.scale for one in pairs]
        seen = [_Seen(one, of, entities) for one, of in zip(pairs, facts, strict=True)]
        tokens = torch.cat(list(states))
        return [reader(tokens, seen) for reader in self.readers]

    def allowed(self, pairs: Sequence[Pairs]) -> Tensor:
        """What the mask allows each pair: (pairs, relations) bool."""
        ends = [torch.from_numpy(one.labels[side]) for one in pairs for side in (one.heads, one.tails)]
        heads, tails = (torch.cat(ends[side::2]).to(self.mask.device) for side in (0, 1))
        return self.mask[:, heads, tails].T

    def loss(self, states: Sequence[Tensor], pairs: Sequence[Pairs]) -> Tensor:
        """Summed over pairs, in nats, the mean of the readers; see `adaptive_threshold`. Beside it, TYPING times that
        of telling each mention's entity label from its tokens alone, which Xiao et al. 2022 (SAIS, arXiv 2109.12093)
        have among their tasks."""
        device = self.mask.device
        gold = torch.cat([torch.from_numpy(one.gold) for one in pairs]).to(device)
        label = torch.cat([torch.from_numpy(one.labels[one.mentions[:, 0]]) for one in pairs]).to(device)
        allowed = self.allowed(pairs)
        losses = [
            adaptive_threshold(logits, gold, allowed) + TYPING * cross_entropy(types, label, reduction="sum")
            for logits, types in self(states, pairs)
        ]
        return torch.stack(losses).mean()

    def probabilities(self, states: Sequence[Tensor], pairs: Sequence[Pairs], *, masked: bool = True) -> list[Tensor]:
        """For each window (pairs, relations): how likely each relation is beside the threshold, the mean of the
        readers; 0 for what the mask rules out."""
        logits = [found for found, _ in self(states, pairs)]
        told = torch.stack([(one[:, 1:] - one[:, :1]).sigmoid() for one in logits]).mean(0)
        if masked:
            told = told.masked_fill(~self.allowed(pairs), 0.0)
        return list(told.split([len(one.heads) for one in pairs]))


def adaptive_threshold(logits: Tensor, gold: Tensor, allowed: Tensor) -> Tensor:
    """The adaptive-threshold loss of Zhou et al. 2021 (ATLOP, arXiv 2010.11304), summed over pairs, in nats.

    Each pair has a threshold of its own, a class that is learned as well: its relations should score over it, all
    others below. A relation that is not allowed takes part in neither.
    logits: (pairs, 1 + relations), the threshold first; gold, allowed: (pairs, relations) bool.
    """
    never = torch.finfo(logits.dtype).min
    threshold, scores = logits[:, :1], logits[:, 1:]
    right = scores.masked_fill(~(gold & allowed), never)
    wrong = scores.masked_fill(gold | ~allowed, never)
    above = torch.cat([threshold, right], 1).logsumexp(1, keepdim=True) - scores  # (pairs, relations)
    below = torch.cat([threshold, wrong], 1).logsumexp(1) - threshold[:, 0]
    return above.masked_fill(~(gold & allowed), 0.0).sum() + below.sum()


class _Reader(nn.Module):
    """One reader: tokens → concepts → pairs, each pair once more beside those that share a concept with it."""

    def __init__(self, width: int, entities: int, relations: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, SIZE)
        self.typing = nn.Linear(SIZE, entities)
        self.typed = nn.Linear(SIZE + entities, SIZE)
        self.views = _Views()
        self.facts = nn.Linear(FACTS, SIZE // 2)
        self.kinds = nn.EmbeddingBag(KINDS, KIND)
        nn.init.normal_(self.kinds.weight, std=0.1)
        self.pair = nn.Linear(3 * SIZE + VIEWS * SIZE + SIZE // 2 + 3 * KIND, SIZE)
        self.beside = nn.Linear(5 * SIZE, SIZE)
        self.out = nn.Linear(SIZE, 1 + relations)
        self.plain = nn.Linear(FACTS, 1 + relations, bias=False)  # what the facts alone say
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, states: Tensor, seen: Sequence[_Seen]) -> tuple[Tensor, Tensor]:
        """states: (tokens of all windows, width)."""
        sizes = [len(one.types) for one in seen]
        tokens = self.dropout(gelu(self.project(states)))  # (tokens, SIZE)
        mentions = [one.mentions @ plain for one, plain in zip(seen, tokens.split(sizes), strict=True)]
        tokens = torch.cat([tokens, torch.cat([one.types for one in seen])], -1)
        tokens = self.dropout(gelu(self.typed(tokens)))
        split = zip(seen, tokens.split(sizes), strict=True)
        concepts = torch.cat([one.pooled(one.mentions @ own) for one, own in split])  # (concepts, SIZE)
        return self._pairs(concepts, tokens, seen), self.typing(torch.cat(mentions))

    def _pairs(self, concepts: Tensor, tokens: Tensor, seen: Sequence[_Seen]) -> Tensor:
        """Logits of all pairs: (pairs, 1 + relations)."""
        firsts = [0, *accumulate(one.count for one in seen)]
        h = torch.cat([one.heads + first for one, first in zip(seen, firsts, strict=False)])
        t = torch.cat([one.tails + first for one, first in zip(seen, firsts, strict=False)])
        facts = torch.cat([one.facts for one in seen])
        kinds = self.dropout(torch.cat([self.kinds(*one.kinds) for one in seen]))
        both = torch.cat([concepts[h], concepts[t], concepts[h] * concepts[t]], -1)
        views = self.views(both, tokens, seen)
        known = [gelu(self.facts(facts)), kinds[h], kinds[t], kinds[h] * kinds[t]]
        pair = self.dropout(gelu(self.pair(self.dropout(torch.cat([both, views, *known], -1)))))
        rivals = [summed for side in (h, t) for summed in _beside(pair, side, len(concepts))]
        pair = gelu(self.beside(torch.cat([pair, *rivals], -1)))
        return self.out(self.dropout(pair)) + self.plain(facts)


class _Views(nn.Module):
    """What a pair sees of the document: several looks, drawn by what the pair is and by where each token stands.

    Localized context pooling (Zhou et al. 2021) takes the backbone's own attention; here the pair asks itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(3 * SIZE, VIEWS * VIEW)
        self.key = nn.Linear(SIZE, VIEWS * VIEW)
        self.value = nn.Linear(SIZE, SIZE)
        self.place = nn.Linear(PLACES, VIEWS)
        self.seen = nn.Linear(PLACES, SIZE)

    def forward(self, pairs: Tensor, tokens: Tensor, seen: Sequence[_Seen]) -> Tensor:
        """pairs: (pairs, 3 * SIZE), tokens: (tokens, SIZE), both of all windows → (pairs, VIEWS * SIZE)"""
        sizes, counts = [len(one.types) for one in seen], [len(one.heads) for one in seen]
        query = self.query(pairs).unflatten(-1, (VIEWS, VIEW)).split(counts)
        key = self.key(tokens).unflatten(-1, (VIEWS, VIEW)).split(sizes)
        found = []
        for q, k, value, one in zip(query, key, self.value(tokens).split(sizes), seen, strict=True):
            scores = torch.einsum("pvd,tvd->pvt", q, k) / sqrt(VIEW) + self.place(one.places).transpose(1, 2)
            share = scores.softmax(-1)  # (pairs, views, tokens)
            found.append(share @ value + self.seen(share @ one.places))
        return gelu(torch.cat(found)).flatten(1)


def _beside(pairs: Tensor, side: Tensor, concepts: int) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the pairs that have the same concept on one side: (pairs, SIZE) each."""
    empty = pairs.new_zeros(concepts, pairs.shape[1])
    count = torch.bincount(side, minlength=concepts)[side, None]
    most = empty.scatter_reduce(0, side[:, None].expand_as(pairs), pairs, "amax", include_self=False)
    return empty.index_add(0, side, pairs)[side] / count, most[side]


class _Seen:
    """The pairs of a window as tensors. facts: (pairs, FACTS), brought to one scale."""

    def __init__(self, pairs: Pairs, facts: Tensor, entities: int) -> None:
        self.facts, device = facts, facts.device
        self.heads, self.tails, labels, spots, sentences = (
            torch.from_numpy(one).to(device)
            for one in (pairs.heads, pairs.tails, pairs.labels, pairs.mentions, pairs.sentences)
        )
        flat = torch.tensor([kind for own in pairs.kinds for kind in own], dtype=torch.long, device=device)
        sizes = torch.tensor([0, *(len(own) for own in pairs.kinds)], device=device)
        self.kinds = flat, sizes.cumsum(0)[:-1]  # what an EmbeddingBag takes
        self.owner, self.count = spots[:, 0], len(labels)
        around = _around(spots[:, 1:2], spots[:, 2:], sentences)  # (mentions, tokens, 4)
        self.mentions = around[..., 0] / around[..., 0].sum(1, keepdim=True)  # shares of each mention's tokens
        concepts = self._strongest(around)
        is_label = (labels[:, None] == torch.arange(entities, device=device)).float()  # (concepts, entity labels)
        self.types = (concepts[..., 0].T @ is_label).clamp(max=1)  # of each token: (tokens, entity labels)
        self.places = self._places(concepts, self.types[:, labels].T, (sentences == 0).float())

    def pooled(self, mentions: Tensor) -> Tensor:
        """From mentions to concepts by log-sum-exp, a soft maximum (Jia et al. 2019): (concepts, size)."""
        most = self._strongest(mentions.detach())
        total = torch.zeros_like(most).index_add(0, self.owner, (mentions - most[self.owner]).exp())
        return most + total.log()

    def _strongest(self, mentions: Tensor) -> Tensor:
        """The maximum over each concept's mentions: (mentions, …) → (concepts, …)."""
        empty = mentions.new_zeros(self.count, *mentions.shape[1:])
        index = self.owner.view(-1, *(1 for _ in mentions.shape[1:])).expand_as(mentions)
        return empty.scatter_reduce(0, index, mentions, "amax", include_self=False)

    def _places(self, concepts: Tensor, alike: Tensor, title: Tensor) -> Tensor:
        """What is known of each token beside each pair: (pairs, tokens, PLACES). concepts: `_around` by concept;
        alike: (concepts, tokens), whether any concept of the same label is named there."""
        h, t = concepts[self.heads], concepts[self.tails]  # (pairs, tokens, 4)
        both = h[..., 1] * t[..., 1]  # in a sentence that names both
        between = both * torch.maximum(h[..., 2].sign() * t[..., 3].sign(), h[..., 3].sign() * t[..., 2].sign())
        nearness = h[..., [0, 2, 3]].amax(-1) * t[..., [0, 2, 3]].amax(-1)
        others = [alike[side] - one[..., 0] for side, one in ((self.heads, h), (self.tails, t))]
        single = torch.stack([both, between, nearness, title.expand_as(both), *others], -1)
        return torch.cat([h[..., :4], t[..., :4], single], -1)


def _around(starts: Tensor, ends: Tensor, sentences: Tensor) -> Tensor:
    """Where tokens stand beside mentions: (mentions, tokens, 4) float: in it, in its sentence, how near before it in
    its sentence, how near after it. starts, ends: (mentions, 1); sentences: (tokens,)."""
    at = torch.arange(len(sentences), device=sentences.device)
    same = sentences[starts] == sentences
    before = ((at - starts).clamp(max=0) / REACH).exp() * ((at < starts) & same)
    after = ((ends - 1 - at).clamp(max=0) / REACH).exp() * ((at >= ends) & same)
    return torch.stack([((at >= starts) & (at < ends)).float(), same.float(), before, after], -1)
