"""Write texts with an adapted top on its trunk: greedy, many at once, each step one token of every text.

Plain greedy decoding writes what `generate` of the whole adapted model writes. A rule for what must not stand in a
text makes some texts take words back (`draft`): the keys and values of these stay in the cache, masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from domainkit.model.base import Base
from domainkit.model.draft import Draft, Unfit
from domainkit.model.split import Skip
from domainkit.model.top import Top
from domainkit.progress import say

BATCH = 8192  # tokens, padding and those to come included, of texts written together: 0.4 GB of keys and values
LIKELY = 32  # tokens tried at one place before a text under a rule ends there
PATIENCE = 3  # steps for each token that a text may have; what is taken back costs steps


@contextmanager
def whole(base: Base, top: Top) -> Iterator[Any]:
    """The causal model of a top with the trunk below it, in this block; the adapter in use is the top's."""
    causal: Any = top.model.get_base_model()
    layers = base.layers_of(causal)
    skipped = {i: layer for i, layer in enumerate(layers) if isinstance(layer, Skip)}
    if top.steer is not None:
        top.steer.marked = None  # it belongs to another batch
    try:
        for i in skipped:
            layers[i] = base.layers()[i]
        yield causal
    finally:
        for i, skip in skipped.items():
            layers[i] = skip


@torch.no_grad()
def write(base: Base, top: Top, prompts: Sequence[Sequence[int]], *, limit: int,
          unfit: Sequence[Unfit | None] = ()) -> list[str]:  # fmt: skip
    """The most likely line of text after each prompt, by greedy choice, up to where it would repeat itself.

    limit: tokens of a text at most. unfit: of each prompt, what must not stand in its text (see `draft`); no text
    that comes back holds any of it.
    """

    def spell(ids: Sequence[int]) -> str:
        return str(base.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if base.streamed:
        say(f"{base.streamed} layers are on disk, and read again for every token that is written: this takes long")
    ends = {i for i in (base.tokenizer.eos_token_id, base.prefix_id) if i is not None}
    drafts = [Draft(spell, ends, rule) for rule in unfit or [None] * len(prompts)]
    with whole(base, top) as model:
        for group in _groups([len(prompt) + limit for prompt in prompts]):
            _Writing(model, [prompts[i] for i in group], [drafts[i] for i in group]).run(limit)
    return [draft.text for draft in drafts]


class _Writing:
    """Texts that are written together: one row each, prompts padded on the left; a row that is done leaves."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], drafts: Sequence[Draft]) -> None:
        self.model, self.drafts = model, list(drafts)
        self.lengths = [len(prompt) for prompt in prompts]
        width = max(self.lengths)
        self.ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
        self.mask = torch.tensor([[0] * (width - n) + [1] * n for n in self.lengths], device=model.device)
        self.places = (self.mask.cumsum(1) - 1).clamp(min=0)  # (rows, tokens), positions of `ids`
        self.cache = DynamicCache(config=model.config)
        self.slots: list[list[int]] = [[] for _ in prompts]  # where in the cache a draft's tokens are

    def run(self, limit: int) -> None:
        for _ in range(PATIENCE * limit):
            for draft, likely in zip(self.drafts, self._forward(), strict=True):
                draft.advance(likely)
            self._keep([i for i, draft in enumerate(self.drafts) if not draft.done and len(draft.tokens) < limit])
            if not self.drafts:
                break
            self._next()

    def _forward(self) -> list[list[int]]:
        """The most likely next tokens of each row."""
        # by place: the fourth argument's name is not the same in all versions of Transformers 5
        out = self.model(self.ids, self.mask, self.places, self.cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1]  # (rows, vocabulary)
        return logits.topk(min(LIKELY, logits.shape[1])).indices.tolist()

    def _keep(self, rows: Sequence[int]) -> None:
        if len(rows) == len(self.drafts):
            return
        index = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]
        for name in ("drafts", "lengths", "slots"):
            setattr(self, name, [getattr(self, name)[i] for i in rows])

    def _next(self) -> None:
        """The token just written becomes the input; the slots of tokens taken back are seen no more."""
        for row, (draft, slots) in enumerate(zip(self.drafts, self.slots, strict=True)):
            kept = len(draft.tokens) - 1
            self.mask[row, slots[kept:]] = 0
            slots[kept:] = [self.mask.shape[1]]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.drafts), 1)], 1)
        self.ids = self.ids.new_tensor([[draft.tokens[-1]] for draft in self.drafts])
        ends = [n + len(draft.tokens) - 1 for n, draft in zip(self.lengths, self.drafts, strict=True)]
        self.places = self.places.new_tensor(ends)[:, None]


def _groups(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of similar size that fit into a batch together, the largest first."""
    group: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if group and sizes[group[0]] * (len(group) + 1) > BATCH:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
