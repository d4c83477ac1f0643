"""Checkpoints that survive a kill, a power cut and a damaged disk.

A checkpoint is written under a temporary name and forced to disk; then a manifest with the SHA-256 of every file is
added and the whole is renamed: what has a checkpoint's name is complete. What is read back is verified first.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from domainkit.files import digest, explain, move, sync, write_text
from domainkit.model.top import Top
from domainkit.progress import say
from domainkit.types import UserError

MANIFEST = "manifest.json"  # file of the checkpoint → SHA-256; written last
WEIGHTS = "model.safetensors"
DRAFT = ".new"  # in the folder of the checkpoints: where the next one is written
KEPT = 2  # checkpoints: should the newest turn out damaged, there is the one before
SHORT = ("inline_container", "iostream")  # in torch.save's words for a write that came up short


class SavingTrainer(Trainer):
    """Saves only what learns, as safetensors, in checkpoints that are whole or not there."""

    top: Top  # what learns

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / DRAFT)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        found = state_dict or self.top.trainable()
        weights = {name: value.detach().contiguous() for name, value in found.items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes its own random state, and an engine's part
            if self.args.should_save:
                publish(folder / DRAFT / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", folder)
        except (OSError, SafetensorError) as error:
            raise explain(error, folder) from error
        except RuntimeError as error:
            if not any(word in str(error) for word in SHORT):
                raise
            raise explain(OSError(errno.ENOSPC, str(error)), folder) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trainable(self.top, safetensors.torch.load_file(Path(resume_from_checkpoint) / WEIGHTS))


def publish(draft: Path, folder: Path) -> None:
    """Give the checkpoint written at `draft` its place in `folder`; all but the newest `KEPT` are deleted."""
    hashes = {}
    for path in sorted(draft.rglob("*")):
        sync(path)
        if path.is_file():
            hashes[path.relative_to(draft).as_posix()] = digest(path)
    write_text(draft / MANIFEST, json.dumps(hashes, indent=1))
    move(draft, folder / draft.name)
    for old in _found(folder)[KEPT:]:
        shutil.rmtree(old)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that is as it was written; None: training starts from its beginning.

    Damaged ones are named and deleted.
    """
    left = _found(folder)
    while left:
        path = left.pop(0)
        fault = damage(path)
        if not fault:
            return path
        say(f"{path} is damaged ({fault}): going back to {left[0].name if left else 'the first step'}")
        shutil.rmtree(path)
    return None


def clear(folder: Path, *, all: bool) -> None:
    """Delete a half-written checkpoint, or all that there are."""
    for path in [folder / DRAFT, *(_found(folder) if all else ())]:
        shutil.rmtree(path, ignore_errors=True)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; "" when every file is as it was written."""
    try:
        expected: Mapping[str, str] = dict(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} cannot be read"
    for name, value in expected.items():
        try:
            if digest(checkpoint / name) != value:
                return f"{name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def load_trainable(top: Top, saved: Mapping[str, Tensor]) -> None:
    """Copy saved values into the trainable parameters; raise UserError naming every mismatch."""
    own = top.trainable()
    wrong = sorted(own.keys() ^ saved.keys()) + sorted(
        name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape
    )
    if wrong:
        raise UserError(
            f"{len(wrong)} weights do not match, first {wrong[0]}",
            instead="the base and settings the run was started with",
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])


def _found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
