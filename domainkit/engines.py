"""DDP, DeepSpeed and FSDP2 around what learns: their own settings, passed on, and proof that they are at work."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from domainkit import ranks
from domainkit.learner import Learner, Pieces
from domainkit.spec import Training
from domainkit.types import UserError

if not torch.cuda.is_available():  # else DeepSpeed, which accelerate imports wherever it is installed, warns on stdout
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

TORCHRUN = "torchrun --nproc_per_node PROCESSES -m domainkit finetune …"


@dataclass(frozen=True)
class Engine:
    """What spreads the training over processes."""

    name: str  # "deepspeed", "fsdp", "ddp"; "" for a process alone
    config: Mapping[str, Any] = field(default_factory=dict)  # its own, as it stands in the file

    @property
    def options(self) -> dict[str, Any]:
        """What the Trainer's arguments say of it."""
        if not self.name:
            return {}
        config = dict(self.config)
        own: dict[str, Any] = {"deepspeed": config} if self.name == "deepspeed" else {}
        own |= {"fsdp": True, "fsdp_config": config} if self.name == "fsdp" else {}
        return own | {"ddp_find_unused_parameters": False, "accelerator_config": {"use_configured_state": True}}

    def check_scaling(self, *, scaled: bool) -> None:
        """Raise UserError for DeepSpeed where the loss will be scaled."""
        if scaled and self.name == "deepspeed":
            raise UserError("DeepSpeed scales a loss only where what learns is float16 as well",
                            where="training.deepspeed",
                            instead="--set fsdp=FILE, or a precision other than float16")  # fmt: skip

    def check(self, wrapped: nn.Module) -> None:
        """Raise UserError unless the engine has really wrapped the model as it was told to."""
        found = type(wrapped).__name__
        if self.name == "deepspeed":
            import deepspeed

            stage = self.config.get("zero_optimization", {}).get("stage", 0)
            right = isinstance(wrapped, deepspeed.DeepSpeedEngine)
            if right and (at_work := cast(Any, wrapped).zero_optimization_stage()) != stage:
                right, found = False, f"ZeRO-{at_work} where the file says {stage}"
        else:
            right = isinstance(wrapped, FSDPModule if self.name == "fsdp" else DistributedDataParallel)
        if not right:
            raise UserError(f"{self.name} was asked for, and the Trainer has made {found} of it",
                            where=f"training.{self.name}" if self.config else "torchrun",
                            instead="the versions of torch and accelerate that domainkit is tested with")  # fmt: skip


def engine(training: Training) -> Engine:
    """The engine that the settings and torchrun ask for.

    Raises UserError for a file that is none, an engine that is not installed, one without torchrun, and more processes
    than a step has rows.
    """
    asked = [name for name in ("deepspeed", "fsdp") if getattr(training, name)]
    if len(asked) == 2:
        raise UserError("two engines", where="training.deepspeed and training.fsdp", instead="one of them")
    if asked and not ranks.launched():
        raise UserError("is for processes that torchrun starts", where=f"training.{asked[0]}", instead=TORCHRUN)
    if training.batch < ranks.count():
        raise UserError(f"{ranks.count()} processes share a step of {training.batch} rows: some have nothing to do",
                        where="training.batch", instead=f"--batch {ranks.count()}, or fewer processes")  # fmt: skip
    if not asked:
        return Engine("ddp" if ranks.launched() else "")
    config = _json(getattr(training, asked[0]), where=f"training.{asked[0]}")
    if asked == ["deepspeed"] and not find_spec("deepspeed"):
        raise UserError("DeepSpeed is not installed", where="training.deepspeed",
                        instead="pip install 'domainkit[deepspeed]', or --set fsdp=FILE")  # fmt: skip
    if asked == ["fsdp"] and int(config.get("version", config.get("fsdp_version", 2))) != 2:
        raise UserError("only version 2 of FSDP", where=training.fsdp, instead='"version": 2')
    return Engine(asked[0], config)


def accumulation(training: Training) -> int:
    """Micro-batches of an optimizer step that each process takes, one after the other."""
    return math.ceil(training.batch / (ranks.count() * (training.micro_batch or training.batch)))


def _json(path: str, *, where: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=f"{where} = {path}",
                        instead="an engine's own JSON file, as in deploy/distributed/") from None  # fmt: skip
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=path) from None
    if not isinstance(found, dict):
        raise UserError("not a table of settings", where=path, instead="{…}")
    return found


class Ranked:
    """What the Trainer of a top does otherwise when several processes train it; a mixin, before the Trainer."""

    learner: Learner
    engine: Engine
    model_wrapped: Any
    optimizer: Any
    args: Any
    scale: float  # of the loss
    check: Any  # (task, loss, norm): raises UserError when they spoil the weights
    _save: Any
    _pieces: Pieces

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        args_ = self.args
        self._pieces = Pieces(self.learner, lr=args_.learning_rate, betas=(args_.adam_beta1, args_.adam_beta2),
                              eps=args_.adam_epsilon, weight_decay=args_.weight_decay)  # fmt: skip
        self.optimizer = self._pieces
        return self.optimizer

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        self.engine.check(self.model_wrapped)
        return prepared

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The micro-batch's share of the step's loss, times the number of processes, as engines average gradients.

        What would spoil the weights is found out here, before any engine can take a step, and in every process.
        """
        self.learner.scale = self.scale
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        told = (inputs["task"], float(loss.detach()), self.learner.norm, self.learner.used)
        for task, value, norm, used in ranks.gather(told):
            self._pieces.learning |= used
            if used:
                self.check(task, value, norm)
        return loss * ranks.count()

    def watch(self, model: nn.Module, task: str, loss: Tensor) -> None:
        """`compute_loss` has."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        weights = self.learner.whole()
        if ranks.leads():
            self._save(output_dir, weights)
        ranks.wait()  # one that ends after a fault has torchrun end the others, be they writing

    def forget(self) -> None:
        """A step begins: nothing has come to any piece."""
        self._pieces.learning.clear()


class Forgetting(TrainerCallback):
    """Tells the Trainer that a step begins."""

    def __init__(self, trainer: Ranked) -> None:
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.forget()
