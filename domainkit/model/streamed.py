"""Decoders larger than the memory: the layers below the last few stay on disk, and are read when they are run.

Such a layer is the family's own module without weights (PyTorch's meta device). Running it reads its weights from the
safetensors, has Transformers convert and quantize them as it does for a whole model, and drops them afterwards; while
it is `held`, they stay. The same bits come out as from a decoder in memory.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig, load_state_dict
from transformers.quantizers import AutoHfQuantizer

from domainkit import memory, ranks
from domainkit.model.folder import loading, weight_files
from domainkit.model.ondisk import Streamed, Waiting, put, tables
from domainkit.model.routed import Routed
from domainkit.types import UserError

SHARE = 0.5  # of the free memory that a base may take before its layers stay on disk
EXPERT = re.compile(r"\.experts\.(\d+)\.")  # in the name of a weight in a file
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Skeleton:
    """A decoder whose weights are all still on disk."""

    model: PreTrainedModel
    path: Path
    device: torch.device
    dtype: torch.dtype  # of what is not quantized

    @classmethod
    def of(cls, path: Path, config: Any, *, dtype: torch.dtype, attention: str, quantization: Any) -> Skeleton:
        """As `from_pretrained` builds it, on the meta device. Raises UserError for what it refuses.

        quantization: of weights that are not quantized on disk.
        """
        device = torch.device(ranks.place())
        with loading(path):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype,
                                                         attn_implementation=attention)  # fmt: skip
            model.config.name_or_path = model.name_or_path = str(path)
            if (path / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
            own = getattr(config, "quantization_config", None)
            if own or quantization:
                quantizer = AutoHfQuantizer.from_config(own or quantization, pre_quantized=own is not None)
                quantizer.validate_environment(device_map={"": device})
                quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": device}, use_kernels=False)
                model.hf_quantizer = quantizer
                quantizer.postprocess_model(model)
        return cls(model.eval().requires_grad_(False), path, device, dtype)

    @property
    def bytes(self) -> int:
        """What its weights take in memory, quantized."""
        quantizer: Any = getattr(self.model, "hf_quantizer", None)

        def width(name: str, value: torch.Tensor) -> float:
            return quantizer.param_element_size(self.model, name, value) if quantizer else value.element_size()

        return int(sum(value.numel() * width(name, value) for name, value in self.model.named_parameters()))

    @property
    def free(self) -> int:
        """Bytes of memory that are free where it computes."""
        return int(torch.cuda.mem_get_info(self.device)[0]) if self.device.type == "cuda" else memory.free()

    @property
    def fits(self) -> bool:
        """Whether it leaves enough of the memory that is free now."""
        return self.bytes <= SHARE * self.free

    def stream(self, layers: nn.ModuleList, keep: int, *, stay: bool = False) -> None:
        """Load it but for the layers below the last `keep`, and make these read their own weights.

        layers: the decoder's. stay: once read, weights stay; the first layer that is run reads those of all. Raises
        UserError for weights that are missing, damaged or of another shape.
        """
        names = {module: name for name, module in self.model.named_modules()}
        files, own = _by_layer(self.path, names[layers], len(layers))
        with loading(self.path):
            self._check(files)
            self._compute_buffers()
            info = self._load(own[None])
            self.model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        self.model.requires_grad_(False)
        below = max(0, len(layers) - keep)
        lower, prefixes = list(layers)[:below], [f"{names[layer]}." for layer in layers]
        reads = [partial(self._read, layer, prefixes[i], own[i]) for i, layer in enumerate(layers)]
        for read in reads[below:]:
            read()
        if stay:
            every = [one for i in range(below) for one in own[i]]
            Waiting(lower, partial(self._read, layers, tuple(prefixes[:below]), every))
        else:
            for i, layer in enumerate(lower):
                self._stream(layer, prefixes[i], reads[i], own[i])

    def _stream(self, layer: nn.Module, prefix: str, read: Callable[[], None], own: Sequence[tuple[Path, str]]) -> None:
        """Make a layer read its own weights, and of routed experts, if it has them in the files one by one, few."""
        experts = [(n, m) for n, m in layer.named_modules() if any(p.ndim == 3 for p in m.parameters(recurse=False))]
        each, rest = defaultdict[int, list[tuple[Path, str]]](list), list[tuple[Path, str]]()
        for file, key in own:
            number = EXPERT.search(key)
            (each[int(number[1])] if number else rest).append((file, key))
        grouped = getattr(self.model.config, "_experts_implementation", "") == "grouped_mm"
        if len(experts) != 1 or not grouped or sorted(each) != list(range(cast(Any, experts[0][1]).num_experts)):
            Streamed(layer, read, read)
            return
        name, module = f"{prefix}{experts[0][0]}.", experts[0][1]
        lean = partial(self._read, layer, prefix, rest, name)
        Streamed(layer, read, lean, Routed(module, partial(self._read_few, module, name, each)))

    def _read(self, layer: nn.Module, prefix: str | tuple[str, ...], wanted: Sequence[tuple[Path, str]],
              but: str | tuple[str, ...] = ()) -> None:  # fmt: skip
        with loading(self.path):
            info = self._load(wanted)
        missing = (name for name in info.missing_keys if name.startswith(prefix) and not name.startswith(but))
        _refuse(missing, info, self.path)
        layer.requires_grad_(False)

    def _read_few(self, experts: nn.Module, prefix: str, each: Mapping[int, Sequence[tuple[Path, str]]],
                  few: Sequence[int]) -> None:  # fmt: skip
        """Read some experts into a module that has room for as many, under new numbers."""
        wanted = [(file, key, EXPERT.sub(f".experts.{at}.", key)) for at, n in enumerate(few) for file, key in each[n]]
        with loading(self.path):
            info = self._load([(file, key) for file, key, _ in wanted], {key: new for _, key, new in wanted})
        _refuse((name for name in info.missing_keys if name.startswith(prefix)), info, self.path)

    def _load(self, wanted: Sequence[tuple[Path, str]], called: Mapping[str, str] = NOTHING) -> Any:
        """Put weights into the model; each file is open no longer than that, for what is mapped counts as memory.

        called: what some of their keys should be.
        """
        by_file = defaultdict[Path, list[str]](list)
        for file, key in wanted:
            by_file[file].append(key)
        with ExitStack() as stack:
            found: dict[str, Any] = {}
            for file, keys in by_file.items():
                opened = stack.enter_context(safe_open(file, framework="pt"))
                found |= {called.get(key, key): opened.get_slice(key) for key in keys}
            return self._convert(found, self.device, getattr(self.model, "hf_quantizer", None))

    def _convert(self, weights: Mapping[str, Any], device: torch.device, quantizer: Any) -> Any:
        model: Any = self.model
        mapping: Any = get_model_conversion_mapping(model, None, quantizer)
        config = LoadStateDictConfig(
            device_map={"": device}, dtype=self.dtype, dtype_plan=model._get_dtype_plan(self.dtype),
            hf_quantizer=quantizer, weight_mapping=mapping,
        )  # fmt: skip
        return convert_and_load_state_dict_in_model(model, dict(weights), config)[0]

    def _check(self, files: Sequence[Path]) -> None:
        """Convert names and shapes alone: what is missing is found now, not in the middle of the first block."""
        model: Any = self.model
        before = tables(model)
        shapes = {key: value for file in files for key, value in load_state_dict(file, map_location="meta").items()}
        info = self._convert(shapes, torch.device("meta"), None)
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        model._adjust_missing_and_unexpected_keys(info)
        put(before)
        _refuse(info.missing_keys, info, self.path)

    def _compute_buffers(self) -> None:
        """What is in no file, such as rotary frequencies."""
        model: Any = self.model
        for module in model.modules():
            for name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            if module._non_persistent_buffers_set:
                model._init_weights(module)


def _refuse(missing: Iterable[str], info: Any, path: Path) -> None:
    """Raise UserError for what did not come out of the files as it should."""
    for fault in sorted(info.mismatched_keys):
        name, found, wanted = fault
        raise UserError(f"weight {name} is {tuple(found)}, config.json says {tuple(wanted)}", where=path)
    for name, error in sorted(info.conversion_errors.items()):
        raise UserError(f"cannot convert weight {name}: {error.strip().splitlines()[-1]}", where=path)
    names = sorted(missing)
    if names:
        raise UserError(f"{len(names)} weights are missing, e.g. {names[0]}", where=path)


def _by_layer(path: Path, name: str, count: int) -> tuple[list[Path], dict[int | None, list[tuple[Path, str]]]]:
    """The weight files of a folder, and what is in them: (file, key) by the number of the layer, None for all that
    belongs to none of the first `count`. name: of the list of layers, in the model."""
    files = weight_files(path)
    numbered = re.compile(rf"(?:^|\.){re.escape(name.rpartition('.')[2])}\.(\d+)\.")
    found = defaultdict[int | None, list[tuple[Path, str]]](list)
    for file in files:
        with loading(path), safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                number = numbered.search(key)
                layer = int(number[1]) if number and int(number[1]) < count else None
                found[layer].append((file, key))
    return files, found
