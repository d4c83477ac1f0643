"""Decoders larger than the memory: the layers below the last few stay on disk, and are read when they are run.

Such a layer is the family's own module without weights (PyTorch's meta device). Running it reads its weights from the
safetensors, has Transformers convert and quantize them as it does for a whole model, and drops them afterwards; while
it is `held`, they stay. The same bits come out as from a decoder in memory.
"""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig, load_state_dict
from transformers.quantizers import AutoHfQuantizer

from domainkit import ranks
from domainkit.model.folder import loading
from domainkit.types import UserError

SHARE = 0.5  # of the free memory that a base may take before its layers stay on disk
STATES = ("quant_state", "state")  # where bitsandbytes' modules keep what belongs to their weights


class Streamed:
    """What reads and drops the weights of a layer. `layer` is found in a decoder as ever, and so are views of it."""

    def __init__(self, layer: nn.Module, read: Callable[[], None]) -> None:
        self._read, self._users = read, 0
        self._empty = _tables(layer)
        self._states = [
            (vars(module), {name: copy.copy(vars(module)[name]) for name in STATES if name in vars(module)})
            for module in layer.modules()
        ]
        layer.register_forward_pre_hook(lambda module, given: self._use(self._users + 1))
        layer.register_forward_hook(lambda module, given, out: self._use(max(self._users - 1, 0)), always_call=True)
        vars(layer)["streamed"] = self

    @contextmanager
    def held(self) -> Iterator[None]:
        """The weights stay in memory throughout this block."""
        before = self._users
        try:
            self._use(before + 1)
            yield
        finally:
            self._use(before)  # whatever broke off in between

    def _use(self, users: int) -> None:
        """Have the weights in memory if there are users, now `users` of them, and not otherwise."""
        if not (users and self._users):  # before reading as well: an earlier one may have been broken off
            _put(self._empty)
            for own, state in self._states:
                own.update({name: copy.copy(value) for name, value in state.items()})
        if users and not self._users:
            self._read()
        self._users = users


class Waiting:
    """Layers that are in no memory until one of them is run, or `fetch`ed: then all of them are read, to stay."""

    def __init__(self, layers: Sequence[nn.Module], read: Callable[[], None]) -> None:
        self._layers, self._read = layers, read
        self._hooks = [layer.register_forward_pre_hook(lambda module, given: self.read()) for layer in layers]
        for layer in layers:
            vars(layer)["waiting"] = self

    def read(self) -> None:
        if not self._hooks:  # a view of a layer may still know of them
            return
        self._read()
        for layer in self._layers:
            del vars(layer)["waiting"]
        while self._hooks:
            self._hooks.pop().remove()


def fetch(layers: Iterable[nn.Module]) -> None:
    """Read those of the layers now that wait to be run."""
    for layer in layers:
        if "waiting" in vars(layer):
            vars(layer)["waiting"].read()


def is_streamed(layer: nn.Module) -> bool:
    """Whether a layer's weights are on disk."""
    return "streamed" in vars(layer)


@contextmanager
def held(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Those of the layers that are streamed stay in memory throughout this block."""
    with ExitStack() as stack:
        for layer in layers:
            if is_streamed(layer):
                stack.enter_context(vars(layer)["streamed"].held())
        yield


@dataclass(frozen=True)
class Skeleton:
    """A decoder whose weights are all still on disk."""

    model: PreTrainedModel
    path: Path
    device: torch.device
    dtype: torch.dtype  # of what is not quantized

    @classmethod
    def of(cls, path: Path, config: Any, *, dtype: torch.dtype, attention: str, quantization: Any) -> Skeleton:
        """As `from_pretrained` builds it, on the meta device. Raises UserError for what it refuses."""
        device = torch.device(ranks.place())
        with loading(path):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype,
                                                         attn_implementation=attention)  # fmt: skip
            model.config.name_or_path = model.name_or_path = str(path)
            if (path / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
            if quantization is not None:
                quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
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
        return int(
            torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else psutil.virtual_memory().available
        )

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
            for layer, read in zip(lower, reads, strict=False):
                Streamed(layer, read)

    def _read(self, layer: nn.Module, prefix: str | tuple[str, ...], wanted: Sequence[tuple[Path, str]]) -> None:
        with loading(self.path):
            info = self._load(wanted)
        _refuse({name for name in info.missing_keys if name.startswith(prefix)}, info, self.path)
        layer.requires_grad_(False)

    def _load(self, wanted: Sequence[tuple[Path, str]]) -> Any:
        """Put weights into the model; each file is open no longer than that, for what is mapped counts as memory."""
        by_file = defaultdict[Path, list[str]](list)
        for file, key in wanted:
            by_file[file].append(key)
        with ExitStack() as stack:
            found: dict[str, Any] = {}
            for file, keys in by_file.items():
                opened = stack.enter_context(safe_open(file, framework="pt"))
                found |= {key: opened.get_slice(key) for key in keys}
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
        before = _tables(model)
        shapes = {key: value for file in files for key, value in load_state_dict(file, map_location="meta").items()}
        info = self._convert(shapes, torch.device("meta"), None)
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        model._adjust_missing_and_unexpected_keys(info)
        _put(before)
        _refuse(info.missing_keys, info, self.path)

    def _compute_buffers(self) -> None:
        """What is in no file, such as rotary frequencies."""
        model: Any = self.model
        for module in model.modules():
            for name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            if module._non_persistent_buffers_set:
                model._init_weights(module)


def _tables(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The tables of parameters and buffers of a module and those below it, each with what stands in it now."""
    return [(table, dict(table)) for m in module.modules() for table in (m._parameters, m._buffers)]


def _put(tables: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for table, content in tables:
        table.update(content)


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
    index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
    files = [whole]
    if not whole.is_file():
        files = sorted({path / shard for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    numbered = re.compile(rf"(?:^|\.){re.escape(name.rpartition('.')[2])}\.(\d+)\.")
    found = defaultdict[int | None, list[tuple[Path, str]]](list)
    for file in files:
        with loading(path), safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                number = numbered.search(key)
                layer = int(number[1]) if number and int(number[1]) < count else None
                found[layer].append((file, key))
    return files, found
