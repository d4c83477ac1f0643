"""The frozen decoder everything stands on, loaded in 4 to 32 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TorchAoConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.quantization_config import QuantizationConfigMixin

from domainkit import heap, ranks
from domainkit.model import attention as lsh
from domainkit.model import positions
from domainkit.model.bases import resolve
from domainkit.model.folder import first_line, identity, inspect, loading, quiet, read_tokenizer
from domainkit.model.ondisk import is_streamed
from domainkit.model.packed import block_of, compute_in, values
from domainkit.model.precision import AUTO, DTYPES
from domainkit.model.precision import precision as chosen
from domainkit.model.streamed import Skeleton
from domainkit.progress import say
from domainkit.types import UserError

lsh.register()
BITS = (4, 8, 16, 32)
STREAM = ("auto", "always", "never")


@dataclass(frozen=True)
class Base:
    """A loaded decoder: in eval mode, every parameter frozen."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str  # "smollm2-135m", or the folder or hub id as it was given
    path: Path  # local folder it was loaded from
    sha256: str  # fingerprint(path)
    bits: int
    attention: str
    compute: torch.dtype  # of its matrix products, but for those that 8 bits compute in int8
    added: tuple[int, ...] = ()  # ids of glossary tokens, whose rows are not the base's own
    plain: PreTrainedTokenizerFast | None = None  # the base's own tokenizer, where `tokenizer` knows glossary tokens
    rows: str = ""  # fingerprint of those rows
    positions: str = ""  # how they were stretched, such as "8192 x 4 by YaRN"; "": as they were trained
    packed: int = 0  # weights of a block, if the folder's weights are packed and stay so; 0: they are not

    @property
    def facts(self) -> dict[str, Any]:
        """What reports and records say of it."""
        compute = str(self.compute).removeprefix("torch.")
        facts = {"name": self.name, "sha256": self.sha256, "bits": self.bits, "attention": self.attention,
                 "compute": compute}  # fmt: skip
        return facts | {name: of for name in ("positions", "packed") if (of := getattr(self, name))}

    @property
    def origin(self) -> dict[str, Any]:
        """What decides the bits that it computes, but for rows that were added: more than reports tell."""
        return self.facts | {"rest": str(self.model.dtype), "device": self.model.device.type}

    @property
    def tied(self) -> bool:
        """Whether input embedding and output head are one matrix."""
        return self.head.weight is self.embedding.weight

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def streamed(self) -> int:
        """Number of layers, from the bottom, that stay on disk and are read when they are run."""
        return sum(map(is_streamed, self.layers()))

    @property
    def width(self) -> int:
        """Hidden size."""
        return int(self.model.config.hidden_size)

    @property
    def prefix_id(self) -> int:
        """The token every sequence starts with: bos, else eos, else pad; UserError when there is none."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id):
            if token is not None:
                return int(token)
        raise UserError(
            "the tokenizer has no bos, eos or pad token to start a sequence with",
            where=self.path,
            instead='name one in tokenizer_config.json, e.g. "bos_token"',
        )

    @property
    def backbone(self) -> nn.Module:
        """The decoder without its output head."""
        return self.model.base_model

    @property
    def norm(self) -> nn.Module:
        """The normalization between the last layer and the output head."""
        for name in ("norm", "ln_f", "final_layernorm", "final_layer_norm"):
            if hasattr(self.backbone, name):
                return getattr(self.backbone, name)
        raise UserError("this decoder has no final normalization", where=self.path)

    @property
    def embedding(self) -> nn.Embedding:
        """Token ids → rows (…, width). Not quantized but in packed folders: see `input_rows`."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def head(self) -> nn.Linear:
        """The output head: hidden states (…, width) → logits (…, vocabulary). Not quantized but in packed folders."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    @property
    def input_rows(self) -> Tensor:
        """The embedding as numbers, (vocabulary, width); of a packed base a copy."""
        return values(self.embedding)

    @property
    def output_rows(self) -> Tensor:
        """The output head as numbers, (vocabulary, width); of a packed base a copy."""
        return values(self.head)

    def layers(self) -> nn.ModuleList:
        """The decoder layers, bottom first, whatever the family calls them."""
        return self.layers_of(self.model)

    def layers_of(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers of a model built as this one is."""
        for module in model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.depth:
                return module
        raise UserError("found no list of decoder layers", where=self.path, instead="a Llama-like decoder")


def load_base(name: str | Path, *, bits: int = 4, precision: str = AUTO, attention: str = "sdpa", context: int = 0,
              hub: bool = False, stream: str = "never", keep: int = 2) -> Base:  # fmt: skip
    """Load a decoder, frozen, on CUDA when there is one, else on the CPU.

    `bits`: 32 is float32; 16 is bfloat16 or float16; 8 is LLM.int8; 4 is NF4 with double quantization. `precision`:
    "auto", "float32", "bfloat16", "float16" or "fp8", what it is computed in (`model.precision`); fp8 are 8 bits as
    well, all but the last `keep` layers, which learn, and its products have no gradient. Only `nn.Linear` layers are
    quantized, not embeddings, norms, the output head and DeepSeek's routed experts (three-dimensional tensors, most of
    such a model's weights). A folder whose weights are packed (`quantize`) is loaded as it is with 4 bits, and unpacked
    with 16 or 32. `attention` is any name in transformers' AttentionInterface, "eager", or "lsh"
    (`domainkit.nets.lsh`). `context`: tokens of the longest sequence it will read; beyond those that it was trained to,
    its positions are stretched (`positions.stretch`). `stream`: "always" leaves all layers but the last `keep` on disk,
    where they are read whenever they are run (`streamed`); "auto" does so if the base would take more than half of the
    memory that is free, else it reads them when the first of them is run, which may be never: whoever finds all
    activations stored needs none of them.

    Raises UserError: unknown bits or attention, or bits that packed weights do not have; a precision that bits or
    device do not have; positions that cannot be stretched; no such base; pickled, missing, damaged or changed weights;
    a missing tokenizer; code from the author needed; not a decoder. Never runs code from the folder, and never goes to
    the network unless `hub` is true.
    """
    if bits not in BITS:
        raise UserError(f"bits must be 4, 8, 16 or 32, not {bits!r}", where="bits")
    ways = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    if attention not in ways:
        raise UserError(f"unknown attention {attention!r}", where="attention", instead=f"one of {', '.join(ways)}")
    if stream not in STREAM:
        raise UserError(f"unknown way to stream {stream!r}", where="stream", instead=f"one of {', '.join(STREAM)}")
    heap.give_back()
    path = resolve(name, hub=hub)
    inspect(path)
    tokenizer = read_tokenizer(path)
    dtype, compute = chosen(bits, precision)
    config, stretched = configuration(path, context)
    block = block_of(config)
    if block:
        check_packed(path, bits, stream)
    quantization = None if block else _quantization(bits, compute, config, keep)
    how: dict[str, Any] = {"dtype": dtype, "attention": attention, "quantization": quantization}
    skeleton = None if stream == "never" or (block and bits != 4) else Skeleton.of(path, config, **how)
    fits = skeleton is not None and stream == "auto" and skeleton.fits
    model = skeleton.model if skeleton else _model(path, config if stretched else None, **how)
    if stretched:
        positions.check(model, context, where=path)
        say(f"{name} reads {context:,} tokens at once: positions {stretched}")
    if block and bits != 4:
        model = cast(Any, model).dequantize(dtype)
    model.eval().requires_grad_(False)
    _keep_plain_kernels(model)
    compute_in(model, compute)
    base = Base(model, tokenizer, str(name), path, identity(path), bits, attention, compute, positions=stretched,
                packed=block if block and bits == 4 else 0)  # fmt: skip
    layers = base.layers()  # refuses a decoder of unknown build now, not after an hour
    if skeleton:
        size, free = (f"{number / 1e9:.1f} GB" for number in (skeleton.bytes, skeleton.free))
        skeleton.stream(layers, keep, stay=fits)
        if not fits:
            say(f"{name} takes {size} of memory, {free} are free: {base.streamed} of {base.depth} layers stay on disk")
    return base


def configuration(path: Path, context: int) -> tuple[Any, str]:
    """The decoder's configuration, fit for sequences of `context` tokens, and what was done to its positions."""
    with quiet():
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot read config.json: {first_line(error)}", where=path) from error
        return config, positions.stretch(config, context, where=path)


def check_packed(path: Path, bits: int, stream: str = "") -> None:
    """Raise UserError for what packed weights cannot be loaded as."""
    if bits == 8:
        raise UserError("the weights are packed in 4 bits", where=path, instead="bits=4, or 16 or 32 to unpack them")
    if bits != 4 and stream == "always":
        raise UserError(f"packed weights are not streamed in {bits} bits", where=path, instead="bits=4")


def _quantization(bits: int, compute: torch.dtype, config: Any, keep: int) -> QuantizationConfigMixin | None:
    """keep: last layers that fp8 leaves as they are."""
    if compute == DTYPES["fp8"]:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

        last = range(config.num_hidden_layers - keep, config.num_hidden_layers)
        how = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        return TorchAoConfig(how, modules_to_not_convert=["lm_head", *(rf"[^0-9]*\.{number}" for number in last)])
    if bits == 4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else None


def _model(path: Path, config: Any, *, dtype: torch.dtype, attention: str,
           quantization: QuantizationConfigMixin | None) -> PreTrainedModel:  # fmt: skip
    asked = {} if quantization is None else {"quantization_config": quantization}  # None would hide the folder's own
    with loading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            **asked,
            device_map={"": ranks.place()},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills these with random numbers and only warns
        raise UserError(f"{len(missing)} weights are missing, e.g. {missing[0]}", where=path)
    return model


def _keep_plain_kernels(model: nn.Module) -> None:
    """Keep bitsandbytes from switching kernels in eval mode on CPUs with AVX512-BF16.

    There it repacks a Linear4bit at its first forward and runs a kernel that has no backward: gradients stop
    silently, and eval differs from training.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            vars(module)["support_avx512bf16_for_cpu"] = False
