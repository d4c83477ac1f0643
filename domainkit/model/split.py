"""Cut a decoder in two: the trunk (everything below the last layers) and the top (the last layers and the head).

Both are views: the parameters are those of the base, under the names they have there, so an adapter trained on
the top loads onto the whole model with plain PEFT.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from domainkit.model.base import Base
from domainkit.model.ondisk import fetch, is_streamed, rounds
from domainkit.types import UserError

BLOCK = 8192  # tokens of a long text that a layer's feed-forward part takes at a time


class Skip(nn.Module):
    """Stands where a decoder layer stood and passes the hidden states on."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states


class Tap(Skip):
    """A Skip that remembers what went through it."""

    seen: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.seen = hidden_states
        return hidden_states

    def take(self) -> Tensor:
        """What went through last; it is not kept."""
        seen, self.seen = self.seen, None
        assert seen is not None, "nothing went through"
        return seen


class Trunk(nn.Module):
    """Token ids → what enters the first trainable layer, after what leaves the layers at `depths`.

    depths: numbers of layers passed, from 1, rising, below the trunk's own. forward(ids): ids (rows, tokens) int64,
    padded on the right → (rows, tokens, (depths + 1) * width), the trunk's own output last. A causal decoder never
    looks right, so padding needs no mask. Raises UserError for a depth that the trunk does not have.
    """

    def __init__(self, base: Base, layers: int, depths: Sequence[int] = ()) -> None:
        super().__init__()
        check_layers(base, layers)
        size = base.depth - layers
        if list(depths) != sorted({d for d in depths if 1 <= d < size}):
            raise UserError(f"the trunk has no depths {list(depths)}", where=base.name, instead=f"1 to {size - 1}")
        self.tap = Tap()
        self._passing: list[Tensor] = []
        below = [_by_blocks(layer) for layer in base.layers()[:size]]
        kept = [self._heard(layer) if i + 1 in depths else layer for i, layer in enumerate(below)]
        self.backbone = _with_layers(base.model.base_model, [*kept, self.tap, *(Skip() for _ in range(layers - 1))])
        self.layers, self.depth = tuple(kept), base.depth  # a tuple: they are modules of the backbone already
        self.streamed = any(map(is_streamed, kept))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device  # the embedding's

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        self._passing.clear()
        last = self.states(input_ids=ids)
        found = torch.cat([*self._passing, last], -1) if self._passing else last
        self._passing.clear()  # of a long text they are large
        return found

    @torch.no_grad()
    def each(self, batches: Sequence[Tensor], done: Callable[[int], None] = lambda batch: None) -> list[Tensor]:
        """`forward` of every batch, with the same bits, a layer at a time: each is read once for all of them.

        done is told the number of a batch when it has passed a layer.
        """
        states = [self.embed(ids) for ids in batches]
        found: list[list[Tensor]] = [[] for _ in batches]
        for i, layer in enumerate(self.layers):
            for counts in rounds(layer):
                for j, passing in enumerate(states):
                    out = self.step(i, passing)
                    if counts:
                        states[j] = out
                        found[j] += self._passing
                        done(j)
                    self._passing.clear()
        return [torch.cat([*kept, last], -1) if kept else last for kept, last in zip(found, states, strict=True)]

    def embed(self, ids: Tensor) -> Tensor:
        """What enters the lowest layer: (rows, tokens, width)."""
        return cast(Any, self.backbone).get_input_embeddings()(ids)

    def step(self, number: int, states: Tensor) -> Tensor:
        """What leaves a layer that `states` (rows, tokens, width) enter."""
        skipped = [Skip() for _ in range(self.depth - 2)]
        alone = _with_layers(self.backbone, [*skipped[:number], self.layers[number], self.tap, *skipped[number:]])
        alone(inputs_embeds=states, use_cache=False)
        return self.tap.take()

    def _heard(self, layer: nn.Module) -> nn.Module:
        """The layer, telling what leaves it; the base's own stays as it was."""
        heard = _view(layer)
        heard._forward_hooks = OrderedDict(heard._forward_hooks)
        heard.register_forward_hook(
            lambda module, given, out: self._passing.append(out[0] if isinstance(out, tuple) else out)
        )
        return cast(nn.Module, heard)

    def states(self, **inputs: Tensor) -> Tensor:
        """`forward` with gradients: `input_ids` (rows, tokens), or `inputs_embeds` (rows, tokens, width)."""
        self.backbone(**inputs, use_cache=False)
        return self.tap.take()


def top(base: Base, layers: int) -> PreTrainedModel:
    """The whole causal model with the trunk's layers skipped; feed it activations as `inputs_embeds`.

    The last `layers` layers are copies, so adapting them leaves `base` as it was.
    """
    check_layers(base, layers)
    last = base.depth - layers
    if last < base.streamed:
        kept = base.depth - base.streamed
        raise UserError(f"{layers} layers were to learn, but only the last {kept} are in memory",
                        where="training.layers", instead=f"load_base(…, keep={layers})")  # fmt: skip
    fetch(base.layers()[last:])
    parts = [Skip() if i < last else _by_blocks(copy.deepcopy(layer)) for i, layer in enumerate(base.layers())]
    model: Any = _view(base.model)
    setattr(model, model.base_model_prefix, _with_layers(base.model.base_model, parts))
    return model


@torch.no_grad()
def last_states(base: Base, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """What enters the output head, for each batch of token ids (rows, tokens): (rows, tokens, width)."""
    given = [{"input_ids": ids} for ids in batches]
    backbone = base.backbone
    if base.streamed:
        below = Trunk(base, base.depth - base.streamed)
        given = [{"inputs_embeds": states} for states in below.each(batches)]
        rest = [Skip() for _ in below.layers] + list(base.layers()[base.streamed :])
        backbone = _with_layers(backbone, rest)
    for inputs in given:
        yield backbone(**inputs, use_cache=False).last_hidden_state


@torch.no_grad()
def check_split(base: Base, layers: int) -> None:
    """Prove on a few tokens that trunk and top together are the base; raise UserError when they are not.

    Guards every family that nobody has tried: a decoder that does more between its layers than call them in
    order (or scales `inputs_embeds`) is refused instead of being trained on wrong activations.
    """
    device = base.model.device
    ids = torch.arange(3, 19, device=device)[None] % base.model.config.vocab_size  # (1, 16)
    whole, below = _side_by_side(base, Trunk(base, layers), ids)
    parts = top(base, layers)(inputs_embeds=below, use_cache=False).logits
    if not torch.allclose(whole, parts, rtol=1e-4, atol=1e-4 * float(whole.abs().max())):
        worst = float((whole - parts).abs().max())
        raise UserError(
            f"this decoder cannot be split at its last {layers} layers (logits differ by {worst:.3g})",
            where=base.name,
            instead="a Llama-, Qwen- or DeepSeek-like decoder",
        )


def _side_by_side(base: Base, trunk: Trunk, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the whole model, and what its trunk makes of the same tokens. Streamed layers are read once for both:
    while one is in memory for the model, it takes its `step` for the trunk."""
    if not trunk.streamed:
        return base.model(input_ids=ids, use_cache=False).logits, trunk(ids)
    below, stepping = trunk.embed(ids), False

    def step(number: int, *_: object) -> None:
        nonlocal below, stepping
        if not stepping:  # the step itself calls the layer
            stepping = True
            below = trunk.step(number, below)
            stepping = False

    layers = base.layers()[: len(trunk.layers)]
    hooks = [layer.register_forward_pre_hook(partial(step, i)) for i, layer in enumerate(layers)]
    try:
        whole = base.model(input_ids=ids, use_cache=False).logits
        return whole, below
    finally:
        for hook in hooks:
            hook.remove()


def check_layers(base: Base, layers: int) -> None:
    """Raise UserError unless `layers` leaves at least one layer for the trunk."""
    if not 1 <= layers < base.depth:
        raise UserError(
            f"cannot train the last {layers} layers of {base.depth}",
            where="training.layers",
            instead=f"a number from 1 to {base.depth - 1}",
        )


def _with_layers(backbone: nn.Module, layers: list[nn.Module]) -> nn.Module:
    clone = _view(backbone)
    name = next(n for n, m in backbone.named_children() if isinstance(m, nn.ModuleList) and len(m) == len(layers))
    setattr(clone, name, nn.ModuleList(layers))
    return clone


def _by_blocks(layer: nn.Module) -> nn.Module:
    """A view of a layer whose feed-forward part, if it is called as in Llama, takes a long text block by block.

    It knows no neighbours, and is several times as wide inside as the states are: 100,000 tokens of the embedded base
    would be 0.6 GB there, three times over. With gradients a block is computed once more on the way back.
    """
    view = _view(layer)
    if not hasattr(view, "mlp"):
        return layer
    view.mlp = _view(view.mlp)
    view.mlp.forward = partial(_blocks, view.mlp.forward)
    return cast(nn.Module, view)


def _blocks(forward: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """What `forward` makes of states (rows, tokens, width), each token by itself."""
    if states.shape[1] <= BLOCK:
        return forward(states)
    if torch.is_grad_enabled():
        forward = partial(checkpoint, forward, use_reentrant=False)
    return torch.cat([forward(block.contiguous()) for block in states.split(BLOCK, 1)], 1)


def _view(module: nn.Module) -> Any:
    """A copy that shares every parameter but has its own table of children."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone
