"""What can be told from a model folder before its weights are loaded: identity, faults, tokenizer."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from domainkit.files import digest
from domainkit.types import UserError

MANIFEST, CONFIG = "domainkit-base.json", "config.json"
METHOD = "domainkit"  # what config.json calls the quantization of packed weights
# Beside *.safetensors, these files decide what a base computes (SentencePiece and BPE tokenizers included).
_IDENTITY = {
    "added_tokens.json", "chat_template.jinja", "config.json", "merges.txt", "special_tokens_map.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
}  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def fingerprint(folder: Path) -> str:
    """SHA-256 over weights, config.json and tokenizer files: names and contents, not where they lie."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name in _IDENTITY or file.suffix == ".safetensors":
            total.update(f"{file.name} {digest(file)}\n".encode())
    return total.hexdigest()


def identity(folder: Path) -> str:
    """`fingerprint`; UserError where the folder was written with another one."""
    found = fingerprint(folder)
    expected = read_manifest(folder).get("fingerprint", found)
    if found != expected:
        raise UserError(f"its files have changed: fingerprint is {found}, expected {expected}", where=folder,
                        instead="a fresh copy of the folder")  # fmt: skip
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that hold a model's weights."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    return sorted({folder / shard for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def companions(folder: Path) -> list[Path]:
    """What belongs to a model beside its weights and config.json: the tokenizer's files, and how it writes."""
    names = _IDENTITY - {CONFIG} | {"generation_config.json"}
    return sorted(file for file in folder.iterdir() if file.name in names)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `pull` or `quantize` noted beside the files it wrote; empty for any other folder."""
    file = folder / MANIFEST
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def inspect(folder: Path) -> None:
    """Raise UserError for everything that can be known to fail before a byte of the weights is loaded."""
    inspect_config(folder / CONFIG)
    _inspect_weights(folder)
    if not has_tokenizer(folder):
        raise UserError("the tokenizer is missing", where=folder, instead="tokenizer.json beside config.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer's files."""
    return any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def inspect_config(file: Path) -> None:
    """Raise UserError unless a config.json is that of a decoder that transformers itself knows."""
    if not file.is_file():
        raise UserError("config.json is missing", where=file.parent, instead="a whole Hugging Face model folder")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=file, instead="the config.json of a model folder") from error
    if not isinstance(facts, dict):
        raise UserError("not a JSON object", where=file, instead="the config.json of a model folder")
    _inspect_config(facts, file)


def _inspect_config(facts: dict[str, Any], file: Path) -> None:
    kind = facts.get("model_type", "")
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if expected is None and facts.get("auto_map"):
        raise UserError(
            f"model type {kind!r} needs code from its author (auto_map), which domainkit never runs",
            where=file,
            instead="a model of a type that transformers itself knows",
        )
    classes = facts.get("architectures") or ()
    if expected is None or (classes and expected not in classes) or facts.get("is_encoder_decoder"):
        raise UserError(
            f"not a decoder that writes text ({', '.join([f'model type {kind!r}', *map(str, classes)])})",
            where=file,
            instead="a causal language model, such as Llama, Qwen or DeepSeek",
        )
    quantized = facts.get("quantization_config")
    if quantized and not (isinstance(quantized, dict) and quantized.get("quant_method") == METHOD):
        raise UserError(
            "the weights are already quantized, not by domainkit",
            where=file,
            instead="the unquantized model: domainkit quantizes it when it loads, or `domainkit base quantize` once",
        )


def _inspect_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UserError(
                f"{len(missing)} of {len(shards)} weight files are missing: {', '.join(missing[:5])}{more}",
                where=folder,
                instead="copy or download the folder again",
            )
    elif not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"the weights are pickled ({pickles[0]}), and loading a pickle can run any code",
                where=folder,
                instead="convert them where you trust the file: AutoModelForCausalLM.from_pretrained(FOLDER)"
                ".save_pretrained(NEW) writes safetensors",
            )
        if any(folder.glob("*.gguf")):
            raise UserError(
                "the weights are GGUF",
                where=folder,
                instead="AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE).save_pretrained(NEW), and the "
                "tokenizer alike",
            )
        raise UserError("there are no weights (*.safetensors)", where=folder)


def check_ids(folder: Path, expected: Mapping[str, Sequence[int]]) -> None:
    """Raise UserError unless every text is cut into the expected token ids and comes back from them."""
    tokenizer = read_tokenizer(folder)
    for text, ids in expected.items():
        found = tokenizer.encode(text, add_special_tokens=False)
        if found != list(ids):
            raise UserError(
                f"the tokenizer cuts {text!r} into {found}, expected {list(ids)}",
                where=folder,
                instead="the versions of tokenizers and transformers that domainkit asks for",
            )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as tokenizer.json says; the family's own class may quietly rebuild its pre-tokenizer."""
    with quiet():
        try:
            if (folder / "tokenizer.json").is_file():
                return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raises bare Exception on a damaged file
            raise UserError(f"cannot read the tokenizer: {first_line(error)}", where=folder) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError("this tokenizer has no fast form", where=folder, instead="a folder with tokenizer.json")
    return tokenizer


def snapshot(name: str, choices: str, hub: bool) -> Path:
    """The hub's files of model `name`: from the local hub cache, or the network if `hub`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=not hub))
    except HFValidationError as error:
        raise UserError("no such folder", where=name, instead=choices) from error
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = (
            f"cannot get it from the hub: {reason}" if hub else "no such folder, nor a model in the hub's local cache"
        )
        more = "" if hub else "; --hub allows the download"
        raise UserError(what, where=name, instead=choices + more) from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and advice."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """`quiet`; whatever Transformers says against the model in `folder` becomes a UserError."""
    with quiet():
        try:
            yield
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
            raise UserError(f"cannot load the model: {first_line(error)}", where=folder) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
