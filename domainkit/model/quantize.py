"""Pack a base's weights into four bits, once: a new folder that loads as it is, with the same bits everywhere.

The output head loses most by it, so its weights are packed for the states that it is multiplied with, as the base has
them on a little text. That is text that no report is about: of the shipped files, documents that are learned from.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from domainkit.assets import ROOT
from domainkit.data.mix import split
from domainkit.data.read import read
from domainkit.files import explain, move, sync
from domainkit.model.base import configuration, load_base
from domainkit.model.bases import resolve
from domainkit.model.folder import CONFIG, MANIFEST, METHOD, companions, fingerprint, inspect, loading, weight_files
from domainkit.model.packed import block_for, block_of, packable
from domainkit.model.split import last_states
from domainkit.nets.affine import pack
from domainkit.types import UserError

TEXTS = ("fed", "cfpb", "general-en", "general-zh")  # English and Chinese, of finance and of everything
TOKENS, DOCUMENTS = 2048, 40  # of all of them; of each at most
CHARACTERS = 8  # of a token at most, in the mean
SHARD = 1 << 30  # bytes of a weight file, and of packed weights that are held at a time


def quantize(name: str | Path, target: Path, *, hub: bool = False) -> Path:
    """Write base `name` with packed weights to the new folder `target`, and return it.

    The base is run once over TOKENS tokens, unquantized, its layers on disk if it is large. Then one matrix is in
    memory at a time, beside a shard of packed ones.
    Raises UserError: `target` exists or cannot be written; no such base; weights that are packed or quantized already,
    pickled, GGUF, missing or damaged; a decoder with no matrix that can be packed.
    """
    source = resolve(name, hub=hub)
    inspect(source)
    config, _ = configuration(source, 0)
    if block_of(config):
        raise UserError("the weights are packed already", where=source, instead="load it as it is")
    if target.exists():
        raise UserError("exists already", where=target, instead="another --out")
    with loading(source), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    block = block_for(config)
    if not packable(model, block):
        raise UserError("no weight can be packed", where=source,
                        instead=f"a decoder whose hidden size is a multiple of {2 * block}")  # fmt: skip
    moment = moment_of(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the last step is a rename and nobody sees half a base
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            draft = Path(place) / "folder"
            draft.mkdir()
            _write(_packed(source, model, block, moment), draft)
            _describe(source, draft, str(name), block)
            for file in draft.iterdir():
                os.chmod(file, 0o644)  # safetensors writes 0600, and a base may be shared
                sync(file)
            move(draft, target)
    except (OSError, SafetensorError) as error:
        raise explain(error, target) from error
    return target


@torch.no_grad()
def moment_of(source: Path) -> Tensor:
    """Second moment of the states that enter the base's output head: (width, width)."""
    base = load_base(source, bits=32, stream="auto", keep=1)
    batches = []
    for name in TEXTS:
        learned, _ = split(read(ROOT / f"tasks/finance/data/{name}.jsonl"))
        text = "\n".join(example.text for example in learned[:DOCUMENTS])[: TOKENS * CHARACTERS]
        ids = base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: TOKENS // len(TEXTS)]
        batches.append(torch.tensor([ids], device=base.model.device))
    states = torch.cat([out[0].float().cpu() for out in last_states(base, batches)])
    return states.T @ states / len(states)


def _packed(source: Path, model: PreTrainedModel, block: int, moment: Tensor) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder, those that can be packed packed. A head that is the embedding is left out."""
    wanted = {f"{name}.weight": module for name, module in packable(model, block).items()}
    again = set(model.all_tied_weights_keys)
    shared = model.get_output_embeddings().weight
    met = set()
    for file in weight_files(source):
        with loading(source), safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if key in again:
                    continue
                tensor = opened.get_tensor(key)
                if key in wanted:
                    met.add(key)
                    tensor = pack(tensor, block, moment if wanted[key].weight is shared else None)
                yield key, tensor
    missing = sorted(wanted.keys() - met - again)
    if missing:
        raise UserError(f"weight {missing[0]} is not in the files under this name", where=source,
                        instead="the folder as AutoModelForCausalLM.save_pretrained writes it")  # fmt: skip


def _write(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """The tensors as model.safetensors; of several shards, with an index."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        safetensors.torch.save_file(held, folder / f"{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for key, tensor in tensors:
        if held and sum(value.nbytes for value in held.values()) + tensor.nbytes > SHARD:
            flush()
        held[key] = tensor.contiguous()
    flush()
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(names) == 1:
        names = ["model.safetensors"]
    else:
        where = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        _json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    for i, name in enumerate(names):
        os.rename(folder / f"{i}", folder / name)


def _describe(source: Path, folder: Path, name: str, block: int) -> None:
    """config.json, the tokenizer's files, and the manifest: whose weights these are, and what all of it has to be."""
    facts: dict[str, Any] = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    _json(folder / CONFIG, facts | {"quantization_config": {"quant_method": METHOD, "block": block}})
    for file in companions(source):
        shutil.copyfile(file, folder / file.name)
    origin = {"name": name, "origin": fingerprint(source)}
    _json(folder / MANIFEST, origin | {"fingerprint": fingerprint(folder)})


def _json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
