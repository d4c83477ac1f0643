"""The run folder: a plain PEFT adapter, the task heads, and a record of what they belong to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from peft import PeftConfig, PeftModel
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from torch import nn

from domainkit.files import digest, explain, move, sync
from domainkit.link import Linker
from domainkit.model.base import Base
from domainkit.model.folder import quiet, read_tokenizer
from domainkit.model.packed import values
from domainkit.model.rows import Rows, extend
from domainkit.model.top import DEFAULT, Top
from domainkit.spec import Training
from domainkit.types import UserError

RECORD = "domainkit.json"  # written last: without it a run is unfinished
ADAPTER, HEADS = "adapter_model.safetensors", "heads.safetensors"
TOKENS = ".token_adapter."
ROWS = "base_model.model.{}" + TOKENS + "trainable_tokens_delta"  # PEFT's name for a module's new rows


@dataclass(frozen=True)
class Record:
    """domainkit.json: everything needed to load a run, and to tell when something does not fit."""

    domain: str
    base: Mapping[str, Any]  # `Base.facts`
    training: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]  # name → kind, labels
    seed: int
    files: Mapping[str, str]  # the domain's files → SHA-256
    data: Mapping[str, Any]  # source → path, SHA-256
    versions: Mapping[str, str]
    limit: int | None = None  # documents of each source
    processes: int = 1  # that trained together
    glossary: Mapping[str, Any] = field(default_factory=dict)  # name, sha256, first id, tokens; empty: none
    sha256: Mapping[str, str] = field(default_factory=dict)  # files of the run → SHA-256


def save(folder: Path, top: Top, base: Base, record: Record, card: str, *, linker: Linker | None = None) -> None:
    """Write the run folder. Files appear by renaming and `domainkit.json` last, so a half-written run is no run.

    Raises UserError when the disk is full or the folder read-only.
    """
    draft = folder / ".new"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with quiet():
            top.model.save_pretrained(str(draft), save_embedding_layers=False)  # of the new rows see _add_rows
        for adapter in top.model.peft_config:
            _add_rows(adapter_path(draft, adapter), base)
        base.tokenizer.save_pretrained(draft)
        heads = {name: value.detach().contiguous() for name, value in top.heads.state_dict().items()}
        safetensors.torch.save_file(heads, draft / HEADS)
        if linker:
            linker.save(draft)
        (draft / "README.md").write_text(card, encoding="utf-8")
        own = (path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
        hashes = {name: digest(draft / name) for name in sorted(own) if not name.endswith("README.md")}
        written = asdict(record) | {"sha256": hashes}
        (draft / RECORD).write_text(json.dumps(written, indent=1, ensure_ascii=False), encoding="utf-8")
        before = _listed(folder)
        files = [path.relative_to(draft) for path in draft.rglob("*") if path.is_file()]
        for name in files:
            sync(draft / name)  # a full disk may show only here, so before anything of an older run goes
        (folder / RECORD).unlink(missing_ok=True)  # from here until the last rename the folder is unfinished
        for name in files:
            if name != Path(RECORD):
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(draft / name, folder / name)
        for parent in {(folder / name).parent for name in files}:
            sync(parent)  # all names are on disk before the one that vouches for them
        move(draft / RECORD, folder / RECORD)
        for stale in before - hashes.keys():
            (folder / stale).unlink(missing_ok=True)  # of the run that this one replaces
            with suppress(OSError):
                (folder / stale).parent.rmdir()  # if that was its last file
        shutil.rmtree(draft)
    except (OSError, SafetensorError) as error:
        raise explain(error, folder) from error


def _add_rows(weights: Path, base: Base) -> None:
    """Put the rows of the glossary's tokens into a saved adapter, as PEFT's `trainable_token_indices` does.

    They do not learn here, so the top has no trainable-token layers; whoever loads the adapter gets them from those.
    """
    if not base.added:
        return
    tensors, indices = safetensors.torch.load_file(weights), {}
    for name in token_modules(base):
        rows = values(base.model.get_submodule(name)).detach()[list(base.added)]
        tensors[ROWS.format(name)] = rows.cpu().contiguous()
        indices[name.rpartition(".")[2]] = list(base.added)
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    path = weights.parent / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"trainable_token_indices": indices}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def token_modules(base: Base) -> list[str]:
    """Names of the modules that hold a row for each token: the input embedding, then the head if it has its own."""
    holders = (base.embedding,) if base.tied else (base.embedding, base.head)
    return [name for holder in holders for name, module in base.model.named_modules() if module is holder]


def restore_rows(folder: Path, base: Base, record: Record) -> Base:
    """The base grown by the rows that a run's adapter brings, with the run's tokenizer; as it is without any."""
    if not record.glossary:
        return base
    saved = safetensors.torch.load_file(folder / ADAPTER)
    rows = Rows(*(saved[ROWS.format(name)] for name in token_modules(base)))
    return extend(base, read_tokenizer(folder), int(record.glossary["first"]), rows)


def _listed(folder: Path) -> set[str]:
    """Files that the finished run in `folder`, if any, calls its own."""
    try:
        return set(json.loads((folder / RECORD).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError):
        return set()


def read(folder: Path) -> Record:
    """The record of a finished run, its files verified. Raises UserError for anything missing or changed."""
    try:
        record = Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            "no finished run here",
            where=folder,
            instead="`domainkit finetune DOMAIN --out RUN` (add --resume to go on)",
        ) from None
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"damaged record: {error}", where=folder / RECORD, instead="train again") from None
    if record.training.keys() != {field.name for field in fields(Training)}:
        raise UserError("was trained by another version of domainkit, with other settings", where=folder / RECORD,
                        instead="train again")  # fmt: skip
    for name, expected in record.sha256.items():
        found = digest(folder / name) if (folder / name).exists() else "missing"
        if found != expected:
            raise UserError(f"changed since training (now {found}, was {expected})", where=folder / name)
    return record


def check_base(record: Record, base: Base) -> None:
    """Raise UserError naming both fingerprints, or positions, when `base` is not what the adapter was trained on."""
    if base.sha256 != record.base["sha256"]:
        raise UserError(
            f"the adapter was trained on base {record.base['name']} ({record.base['sha256']}), "
            f"this is {base.name} ({base.sha256})",
            where=base.path,
            instead=f"--base {record.base['name']}, or train again on this base",
        )
    trained = record.base.get("positions", "")
    if trained != base.positions:
        before, now = (of or "as the base has them" for of in (trained, base.positions))
        raise UserError(f"the adapter was trained with positions {before}, they are {now}", where=base.path,
                        instead="train again")  # fmt: skip


def adapter_path(folder: Path, adapter: str) -> Path:
    """The weights of an adapter of a run: PEFT keeps "default" in the root and others in a folder of their name."""
    return (folder if adapter == DEFAULT else folder / adapter) / ADAPTER


def restore(folder: Path, top: Top) -> None:
    """Load a run's adapters and heads into a fresh top; tasks that the top leaves out are left out."""
    for name in top.model.peft_config:
        path = adapter_path(folder, name)
        weights = {k: v for k, v in safetensors.torch.load_file(path).items() if TOKENS not in k}
        outcome: Any = set_peft_model_state_dict(top.model, weights, adapter_name=name)
        if outcome.unexpected_keys:
            raise UserError(f"unknown weights, first {outcome.unexpected_keys[0]}", where=path)
    saved = safetensors.torch.load_file(folder / HEADS)
    wanted = {name: value for name, value in saved.items() if name.partition(".")[0] in top.heads}
    top.heads.load_state_dict(wanted)


def whole(folder: Path, base: Base) -> PeftModel:
    """The complete adapted model, trunk included, for generation.

    base: with the glossary's rows (`restore_rows`), so that PEFT need not lay them over the embedding at every step.
    """
    with quiet():  # PEFT tells of the rows that it leaves out, transformers of its own deprecations
        config = PeftConfig.from_pretrained(str(folder))
        config.trainable_token_indices = None
        return PeftModel.from_pretrained(base.model, folder, config=config)


def export(folder: Path, base: Base, target: Path) -> None:
    """Write base and adapter as one plain Hugging Face folder, in the base's own type, that any server loads.

    base: loaded with 16 or 32 bits, without the run's rows. Raises UserError when `target` exists or cannot be written.
    """
    if target.exists():
        raise UserError("exists already", where=target, instead="another --merged")
    tokenizer = read_tokenizer(folder)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with quiet():
            if len(tokenizer) > len(base.embedding.weight):
                cast(Any, base.model).resize_token_embeddings(len(tokenizer), mean_resizing=False)
            merged: Any = PeftModel.from_pretrained(base.model, folder).merge_and_unload()
            merged.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        for path in draft.iterdir():
            sync(path)
        move(draft, target)
    except (OSError, SafetensorError) as error:
        raise explain(error, target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def heads_of(tasks: Mapping[str, nn.Module | None]) -> dict[str, nn.Module]:
    """The heads that exist, by task."""
    return {name: head for name, head in tasks.items() if head is not None}


def model_card(record: Record, summaries: Sequence[str]) -> str:
    """README.md of a run, in the form model hubs read."""
    base, tasks = record.base, ", ".join(f"{name} ({task['kind']})" for name, task in record.tasks.items())
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {base['name']}",
        "tags: [domainkit, lora]",
        "---",
        f"# {record.domain} adapter for {base['name']}",
        "",
        f"LoRA on the last {record.training['layers']} layers, trained by domainkit {record.versions['domainkit']} "
        f"on: {tasks}.",
        "",
        *[f"- {summary}" for summary in summaries],
        "",
        f"Base fingerprint (SHA-256): `{base['sha256']}`, {base['bits']}-bit. Any other base gives other results.",
        "",
        *_loading(base),
        "",
        "Full reports: `reports/`. Everything about the run: `domainkit.json`.",
    ]
    return "\n".join(lines) + "\n"


def _loading(base: Mapping[str, Any]) -> list[str]:
    """How a run is loaded without domainkit."""
    export = "`domainkit export RUN_FOLDER --merged MODEL` writes a model that any library loads rightly."
    if "positions" in base:
        told = f"The base reads with other positions than it came with ({base['positions']}), which an adapter cannot"
        return [told, f"say: {export}"]
    if "packed" in base:
        return ["The base's weights are packed by domainkit, which PEFT alone cannot read:", export]
    return [
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        "model = AutoPeftModelForCausalLM.from_pretrained(RUN_FOLDER)  # finds the base where it was trained",
        "tokenizer = AutoTokenizer.from_pretrained(RUN_FOLDER)",
        "```",
    ]
