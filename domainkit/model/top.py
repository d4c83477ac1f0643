"""The trainable top: the last layers with LoRA, the frozen head, and the heads of the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from domainkit.model.base import Base
from domainkit.model.batch import Batch
from domainkit.model.folder import quiet
from domainkit.model.split import top as split_top


class Top(nn.Module):
    """What is trained: a PEFT model over activations, and one head per task that needs one."""

    def __init__(self, model: PeftModel, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(dict(heads))

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states, after the final norm, of the flattened rows: (rows * tokens, width)."""
        causal: Any = self.model.get_base_model()
        weight = self.output_weight
        out = causal.base_model(
            inputs_embeds=batch.hidden.to(weight.device, causal.dtype),
            position_ids=batch.position_ids.to(weight.device),
            use_cache=False,
        )
        return out.last_hidden_state.flatten(0, 1)

    @property
    def output_weight(self) -> Tensor:
        """Weight of the frozen language-model head: (vocabulary, width)."""
        causal: Any = self.model.get_base_model()
        return causal.get_output_embeddings().weight

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within this block the top is the base's: LoRA is switched off."""
        with self.model.disable_adapter():
            yield

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that learn, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}


def lora_config(base: Base, *, layers: int, rank: int, alpha: int) -> LoraConfig:
    """LoRA on every linear map of the last `layers` layers (arXiv 2106.09685), as plain PEFT understands it."""
    last = range(base.depth - layers, base.depth)
    linear = (nn.Linear,)  # bitsandbytes' quantized layers are subclasses
    found = base.layers()[last.start].named_modules()
    targets = sorted({name.rsplit(".", 1)[-1] for name, module in found if isinstance(module, linear)})
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        layers_to_transform=list(last),
        base_model_name_or_path=str(base.path),
    )


def adapt(base: Base, heads: Mapping[str, nn.Module], *, layers: int = 2, rank: int = 16, alpha: int = 32,
          seed: int = 0) -> Top:  # fmt: skip
    """A fresh top over `base`, its LoRA drawn from `seed` exactly as plain PEFT on the whole model would draw it."""
    torch.manual_seed(seed)
    with quiet():
        model = get_peft_model(split_top(base, layers), lora_config(base, layers=layers, rank=rank, alpha=alpha))
    return Top(model, heads)
