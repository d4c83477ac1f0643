"""The trainable top: the last layers with LoRA, the frozen head, and the heads of the tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.folder import quiet
from domainkit.model.packed import values
from domainkit.model.split import top as split_top
from domainkit.nets.balance import Balance
from domainkit.nets.steer import Steer

DEFAULT = "default"  # PEFT's name for the adapter in the root of a run folder
SHARED = 16384  # tokens whose states are kept for the next task
STEER, BALANCE = "(steer)", "(balance)"  # among the heads; no task file is called so


class Top(nn.Module):
    """What is trained: the adapters of a PEFT model over activations, and one head per task that needs one."""

    def __init__(self, model: PeftModel, heads: Mapping[str, nn.Module], added: Collection[int] = ()) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(dict(heads))
        self.added = frozenset(added)  # ids of the glossary's tokens
        self._touched = True
        self._shared: dict[tuple[int, str, bool], tuple[Tensor, Tensor]] | None = None  # activations and `depths`
        for name, value in model.named_parameters():  # PEFT keeps only the active adapter trainable
            value.requires_grad_(".lora_" in name)
        self._learns = [name for name, value in self.named_parameters() if value.requires_grad]

    def use(self, adapter: str) -> None:
        """Make `adapter` the one that `states` goes through; only it and the heads get gradients then."""
        if self.model.active_adapter != adapter:
            self.model.set_adapter(adapter)

    def states(self, batch: Batch, *, both_ways: bool = False) -> Tensor:
        """Last hidden states, after the final norm, of the flattened rows: (rows * tokens, width), float32 at least.

        both_ways: every token sees all of its sequence, the later tokens too.
        """
        causal: Any = self.model.get_base_model()
        device, width = causal.device, int(causal.config.hidden_size)
        if self.steer is not None:
            self.steer.marked = batch.holding(self.added).to(device) if self._touched else None
        out = causal.base_model(
            inputs_embeds=batch.hidden[..., -width:].to(device, causal.dtype),
            position_ids=batch.position_ids.to(device),
            attention_mask=batch.together().to(device, causal.dtype) if both_ways else None,
            use_cache=False,
        )
        return _single(out.last_hidden_state.flatten(0, 1))

    def below(self, batch: Batch) -> Tensor:
        """The trunk's depths and its output, of the flattened rows, each brought to mean 0 and variance 1 of a token:
        (rows * tokens, (depths + 1) * width)."""
        causal: Any = self.model.get_base_model()
        hidden = batch.hidden.flatten(0, 1).to(causal.device, causal.dtype)
        return _normed(_single(hidden), int(causal.config.hidden_size))

    def depths(self, batch: Batch) -> Tensor:
        """What is `below`, and the adapted states beside it, which look both ways here: (rows * tokens,
        (depths + 2) * width)."""
        key = (id(batch.hidden), str(self.model.active_adapter), self._touched)
        if self._shared is not None and key in self._shared:
            return self._shared[key][1]
        states = self.states(batch, both_ways=True)
        found = torch.cat([self.below(batch), _normed(states, states.shape[-1])], -1)
        if self._shared is not None and sum(len(states) for _, states in self._shared.values()) < SHARED:
            self._shared[key] = batch.hidden, found  # kept, so that no other tensor gets its id
        return found

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Within this block `depths` is computed once for all batches of the same activations; no weight may change."""
        self._shared = {}
        try:
            yield
        finally:
            self._shared = None

    @property
    def steer(self) -> Steer | None:
        """The attention bias on glossary tokens, if this top has one."""
        return cast(Steer, self.heads[STEER]) if STEER in self.heads else None

    @property
    def balance(self) -> Balance | None:
        """The weights of the tasks' losses, if they are learned."""
        return cast(Balance, self.heads[BALANCE]) if BALANCE in self.heads else None

    @property
    def scaled(self) -> bool:
        """Whether it is computed in float16, whose range small gradients fall out of unless the loss is scaled."""
        causal: Any = self.model.get_base_model()
        return causal.dtype == torch.float16

    @property
    def output_weight(self) -> Tensor:
        """Weight of the frozen language-model head: (vocabulary, width); of a packed base a copy."""
        causal: Any = self.model.get_base_model()
        return values(causal.get_output_embeddings()).to(causal.dtype)

    @property
    def input_weight(self) -> Tensor:
        """Weight of the input embedding: (vocabulary, width); of a packed base a copy."""
        causal: Any = self.model.get_base_model()
        return values(causal.get_input_embeddings()).to(causal.dtype)

    @property
    def own_weight(self) -> Tensor:
        """`output_weight` without the glossary's tokens: the head of the base as it came."""
        return self.output_weight[: min(self.added, default=None)]

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within this block the top is the base's: LoRA is switched off."""
        self._touched = False
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self._touched = True

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that learn, by name, whichever adapter is in use."""
        return {name: self.get_parameter(name) for name in self._learns}


def _single(states: Tensor) -> Tensor:
    """In float32, where they are shorter: heads and losses are."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _normed(states: Tensor, width: int) -> Tensor:
    """Layer norm of each `width` numbers, without weights: what reads them is linear, and has its own."""
    return layer_norm(states.unflatten(-1, (-1, width)), (width,)).flatten(1)


def lora_config(base: Base, *, layers: int, rank: int, alpha: int) -> LoraConfig:
    """LoRA on every linear map of the last `layers` layers (arXiv 2106.09685), as plain PEFT understands it.

    In a layer with routed experts (DeepSeek) only the attention learns: the experts are three-dimensional tensors,
    and PEFT, told to adapt anything called "down_proj" there, adapts the experts of every layer of the model.
    """
    last = range(base.depth - layers, base.depth)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(set.intersection(*(_linear_maps(base.layers()[i]) for i in last))),
        layers_to_transform=list(last),
        base_model_name_or_path=str(base.path),
    )


def _linear_maps(layer: nn.Module) -> set[str]:
    """Last names of a layer's linear maps, those beside routed experts left out."""
    routed = [n.rpartition(".")[0] for n, m in layer.named_modules() if any(p.ndim == 3 for p in m.parameters(False))]
    return {
        name.rpartition(".")[2]
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)  # bitsandbytes' quantized layers are subclasses
        and not any(name.startswith(f"{block}.") for block in routed)
    }


def adapt(base: Base, heads: Mapping[str, nn.Module], *, layers: int = 2, rank: int = 16, alpha: int = 32,
          seed: int = 0, adapters: Collection[str] = (DEFAULT,), steer: bool = False) -> Top:  # fmt: skip
    """A fresh top over `base`, each LoRA drawn from `seed` exactly as plain PEFT on the whole model would draw it.

    adapters: their names; "default", PEFT's own name for the only one, is always among them. steer: let the last
    layers' attention lean towards the glossary's tokens.
    """
    config = lora_config(base, layers=layers, rank=rank, alpha=alpha)
    with quiet():
        torch.manual_seed(seed)
        split = split_top(base, layers)
        model = get_peft_model(split, config)
        for name in sorted(set(adapters) - {DEFAULT}):
            torch.manual_seed(seed)
            model.add_adapter(name, config)
    if not (steer and base.added):
        return Top(model, heads, base.added)
    leaning = Steer(layers, int(base.model.config.num_attention_heads))
    leaning.attach([cast(Any, layer).self_attn for layer in base.layers_of(split)[-layers:]])
    return Top(model, {**heads, STEER: leaning}, base.added)
