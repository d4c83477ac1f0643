"""Decoders whose weights were packed into four bits once, embedding and output head included (`quantize`).

Transformers learns the format here: once this module is imported, `from_pretrained` loads such a folder. Every packed
matrix is one tensor of bytes under the name that it always had, so tied weights are tied and layers are streamed as
ever; only what reads a weight's numbers has to ask `values`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from domainkit.model.folder import METHOD
from domainkit.nets.affine import product, row_bytes, unpack

LARGE = 2048  # hidden size from which blocks of 64 weights lose little; smaller decoders take blocks of 32

Rows = tuple[int, Tensor]  # the first one's id, and the rows of new tokens: (tokens, width)


class PackedLinear(nn.Linear):
    """A linear map of packed weights. It subclasses nn.Linear, without its weights, so that PEFT adapts it."""

    def __init__(self, width: int, rows: int, block: int, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.block = width, rows, block
        self.weight = _empty(rows, width, block)
        self.register_parameter("bias", bias)
        self.compute: torch.dtype | None = None  # of the product; None: of the states
        self.added: Rows | None = None  # of an output head

    def forward(self, input: Tensor) -> Tensor:
        states = input.to(self.compute or input.dtype)
        out = product(states, self.weight, self.block)
        if self.added is not None:
            first, rows = self.added
            out = pad(out, (0, max(0, first - out.shape[-1])))
            new = linear(states, rows.to(states.dtype))
            out = torch.cat([out[..., :first], new, out[..., first + len(rows) :]], -1)
        return out.to(input.dtype) if self.bias is None else out.to(input.dtype) + self.bias


class PackedEmbedding(nn.Module):
    """An embedding of packed rows."""

    def __init__(self, rows: int, width: int, block: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.block, self.dtype = rows, width, block, dtype
        self.weight = _empty(rows, width, block)
        self.added: Rows | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.added is None:
            return self._own(input)
        first, rows = self.added
        new = (input >= first) & (input < first + len(rows))
        return torch.where(new[..., None], rows[(input - first) * new], self._own(input.masked_fill(new, 0)))

    def _own(self, ids: Tensor) -> Tensor:
        return unpack(self.weight[ids], self.embedding_dim, self.block).to(self.dtype)


def is_packed(module: nn.Module) -> bool:
    """Whether a module's weights are packed."""
    return isinstance(module, PackedLinear | PackedEmbedding)


def values(module: nn.Module) -> Tensor:
    """The weights of an embedding or a linear map as numbers, new tokens' rows among them: (rows, width).

    Those of a packed one are a copy, in float32.
    """
    if not isinstance(module, PackedLinear | PackedEmbedding):
        return cast(Tensor, module.weight)
    width = module.in_features if isinstance(module, PackedLinear) else module.embedding_dim
    own = unpack(module.weight, width, module.block)
    if module.added is None:
        return own
    first, rows = module.added
    own = pad(own, (0, 0, 0, max(0, first - len(own))))  # a tokenizer may have more tokens than there are rows
    return torch.cat([own[:first], rows.to(own.dtype), own[first + len(rows) :]])


def block_of(config: Any) -> int | None:
    """Weights of a block, where a decoder's config says that its weights are packed."""
    told = getattr(config, "quantization_config", None) or {}
    told = told if isinstance(told, dict) else told.to_dict()
    return int(told["block"]) if told.get("quant_method") == METHOD else None


def block_for(config: Any) -> int:
    """Weights of a block that suit a decoder of this size."""
    return 64 if config.hidden_size >= LARGE else 32


def packable(model: PreTrainedModel, block: int) -> dict[str, nn.Module]:
    """The modules that are packed, by name: all linear maps of a width that blocks divide, and the input embedding.

    The output head is packed if the embedding is. Routed experts of DeepSeek are no linear maps and stay as they are.
    """
    embedding: Any = model.get_input_embeddings()
    whole = type(embedding) is nn.Embedding and embedding.embedding_dim % (2 * block) == 0
    found = {}
    for name, module in model.named_modules():
        if module is embedding or module is model.get_output_embeddings():
            fits = whole
        else:
            fits = type(module) is nn.Linear and module.in_features % (2 * block) == 0
        if fits:
            found[name] = module
    return found


def replace(model: PreTrainedModel, block: int) -> None:
    """Put modules for packed weights in the place of those that they pack, on the meta device."""
    dtype = model.dtype
    with torch.device("meta"):
        for name, module in packable(model, block).items():
            if isinstance(module, nn.Embedding):
                empty: nn.Module = PackedEmbedding(module.num_embeddings, module.embedding_dim, block, dtype)
            else:
                one = cast(nn.Linear, module)
                empty = PackedLinear(one.in_features, one.out_features, block, one.bias)
            model.set_submodule(name, empty)


def compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Have the layers' products computed in `dtype`; the output head's stay in that of its states."""
    for module in model.modules():
        if isinstance(module, PackedLinear) and module is not model.get_output_embeddings():
            module.compute = dtype


def _empty(rows: int, width: int, block: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, row_bytes(width, block), dtype=torch.uint8), requires_grad=False)


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What config.json says of packed weights."""

    def __init__(self, block: int, **rest: Any) -> None:
        self.quant_method, self.block = METHOD, block  # type: ignore[assignment]


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """How Transformers loads packed weights."""

    requires_calibration = True  # in Transformers' words: it loads, and never packs by itself

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        replace(model, self.quantization_config.block)  # type: ignore[attr-defined]

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, module in list(model.named_modules()):
            if is_packed(module):
                weight = nn.Parameter(values(module).to(dtype or model.dtype), requires_grad=False)
                rows, width = weight.shape
                if isinstance(module, PackedEmbedding):
                    plain: nn.Module = nn.Embedding(rows, width, device="meta")
                else:
                    plain = nn.Linear(width, rows, bias=False, device="meta")
                    plain.register_parameter("bias", module.bias)
                plain.weight = weight
                model.set_submodule(name, plain)
        model.tie_weights()
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
