"""Train a top on stored activations with the Hugging Face Trainer."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from domainkit import ranks
from domainkit.checkpoint import SavingTrainer, clear, newest
from domainkit.engines import Engine, Forgetting, Ranked, accumulation, engine
from domainkit.files import explain
from domainkit.joint import companions
from domainkit.kinds import Kind, Prepared
from domainkit.learner import Learner
from domainkit.model.batch import Batch
from domainkit.model.folder import quiet
from domainkit.model.store import Store
from domainkit.model.top import Top
from domainkit.spec import Training
from domainkit.steps import Step, Steps, deal, plan_steps
from domainkit.types import UserError

EXPLODED = 50.0  # a gradient norm this many times the recent median stops the run …
LOSS_OF = "loss of "  # in the Trainer's log, before the name of a task that comes along
FLOOR = 1e3  # … when it is also larger than this


Progress = Callable[[int, Mapping[str, float]], None]  # tokens just trained, what was logged


@dataclass(frozen=True)
class Fitted:
    """What training left behind besides the weights."""

    log: tuple[Mapping[str, Any], ...]  # per optimizer step and task: step, task, loss, grad_norm, learning_rate
    seconds: float  # of this call


class Objective(nn.Module):
    """Top plus kinds: the loss of one micro-batch, summed over the tasks that learn from it.

    Each is divided by the terms (tokens, texts) that its task has in the whole optimizer step, over all micro-batches
    and processes: together they give the gradient of one large batch, however unequal they are.
    """

    accepts_loss_kwargs = False  # the Trainer must not count labels

    def __init__(self, top: Top, kinds: Mapping[str, Kind], tasks: Mapping[str, Prepared]) -> None:
        super().__init__()
        self.top, self.kinds, self.tasks = top, kinds, tasks
        self.along = {task for others in companions(tasks).values() for task in others}  # lead no step
        self.told = defaultdict[str, float](float)  # loss of each task since the last log, as it is without weights

    def forward(self, task: str, batches: Mapping[str, Batch], terms: Mapping[str, int],
                shares: Mapping[str, float]) -> dict[str, Tensor]:  # fmt: skip
        """terms: of each task in the whole step; shares: of them that are in these batches."""
        self.top.use(self.tasks[task].adapter)
        losses = list[Tensor]()
        with self.top.sharing():
            for name, batch in batches.items():
                loss = self.kinds[name].loss(self.top, batch, self.tasks[name].labels) / terms[name]
                self.told[name] += float(loss.detach())
                losses.append(self.top.balance(name, loss, shares[name]) if self.top.balance else loss)
        return {"loss": sum(losses[1:], losses[0])}

    def gather(self) -> dict[str, float]:
        """What was told since the last time, over all processes: the loss of each task that had any."""
        names = sorted(self.tasks)
        mine = [(self.told.get(name, 0.0), float(name in self.told)) for name in names]
        summed = iter(ranks.total([value for pair in mine for value in pair]))
        self.told.clear()
        return {name: loss for name, loss, had in zip(names, summed, summed, strict=True) if had}


def fit(top: Top, kinds: Mapping[str, Kind], tasks: Mapping[str, Prepared], store: Store, training: Training, *,
        folder: Path, seed: int, resume: bool, progress: Progress) -> Fitted:  # fmt: skip
    """Train `top` in place. `folder` keeps the checkpoints; `progress(tokens, logs)` is called after every step.

    Interrupted (Ctrl-C, kill) and called again with resume=True it goes on from the newest complete checkpoint and
    ends, on the CPU, with the same bits. Under torchrun every process calls it (after `ranks.join`), and each takes
    its share of every step's micro-batches. Raises UserError when the loss is not finite or the gradient explodes,
    KeyboardInterrupt after saving when interrupted once.
    """
    by = engine(training)
    by.check_scaling(scaled=top.scaled)
    each = accumulation(training) * ranks.count()  # micro-batches of an optimizer step
    steps = deal(plan_steps(tasks, training, seed), each)
    if not steps:  # tasks whose heads are solved, not trained
        return Fitted((), 0.0)
    for value in top.trainable().values():
        value.requires_grad_(True)  # `use` leaves only one adapter's on, and the optimizer takes what it finds
    trainer = _trainer(
        Objective(top, kinds, tasks),
        by,
        args=arguments(training, folder, seed, by, scaled=top.scaled),
        train_dataset=Steps(steps, kinds, tasks, store, each),
        data_collator=lambda items: items[0],
        callbacks=[Reporter(steps, each, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    last = _last(folder, resume)
    began = time.perf_counter()
    try:
        with interruptible(trainer), quiet():
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except OSError as error:
        raise explain(error, folder) from error
    if isinstance(trainer, RankTrainer):
        trainer.learner.settle()
    log = [row for row in trainer.state.log_history if "loss" in row]
    led = [{**row, "task": steps[(int(row["step"]) - 1) * each].task} for row in log]
    along = [{**row, "task": key.removeprefix(LOSS_OF), "loss": value} for row in log for key, value in row.items()
             if key.startswith(LOSS_OF)]  # fmt: skip
    return Fitted((*led, *along), time.perf_counter() - began)


def arguments(training: Training, folder: Path, seed: int, by: Engine, *, scaled: bool = False) -> TrainingArguments:
    """The Trainer's arguments: AdamW, linear warm-up, cosine decay.

    scaled: the loss will be. A fused AdamW leaves steps out by itself, unseen, and the learning rate would go on.
    """
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # an item is a whole micro-batch already
        gradient_accumulation_steps=accumulation(training),
        num_train_epochs=1,  # the plan holds every epoch
        train_sampling_strategy="sequential",
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        optim="adamw_torch" if scaled else "adamw_torch_fused",
        warmup_steps=training.warmup,
        weight_decay=0.0,
        max_grad_norm=training.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=training.save_steps,
        seed=seed,
        data_seed=seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        **by.options,
    )


class TopTrainer(SavingTrainer):
    """Stops before a step that would spoil the weights, and logs the loss of each task.

    The loss of a top in float16 is scaled: gradients that were too small for it come through, and where some become
    too large the step is left out, and the scale halved (Micikevicius et al. 2018, arXiv 1710.03740).
    """

    loss_is_scaled_for_ga = True  # `Objective` divides by the terms of the whole step

    def __init__(self, objective: Objective, *args: Any, **kwargs: Any) -> None:
        self.objective: Objective = objective
        self.top = objective.top
        self._norms: list[float] = []
        super().__init__(*args, **kwargs)
        if self.top.scaled:  # accelerate's own comes with autocast, and on GPUs only
            self.accelerator.scaler = GradScaler(self.args.device.type)

    @property
    def scale(self) -> float:
        """What the loss is multiplied by, for its gradients' sake."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if not (inputs["batches"] or ranks.launched()):  # several processes pass on nothing together
            return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch(model, inputs["task"], loss)
        return loss

    def watch(self, model: nn.Module, task: str, loss: Tensor) -> None:
        """`check` the gradients that have come together."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / self.scale if gradients else 0.0
        self.check(task, float(loss), norm)

    def check(self, task: str, loss: float, norm: float) -> None:
        """Raise UserError, after keeping the weights, for a loss or a gradient norm that would spoil them."""
        if math.isfinite(loss) and not math.isfinite(norm) and self.scale > 1:
            return  # too large at this scale: the scaler leaves the step out
        usual = statistics.median(self._norms) if self._norms else norm
        if not (math.isfinite(loss) and norm < float("inf")) or norm > max(FLOOR, EXPLODED * usual):
            self._give_up(task, loss, norm)
        self._norms = [*self._norms[-49:], norm]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The norm without the scale; 0 of a step that is left out."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return super()._clip_grad_norm(model)
        scaler.unscale_(cast(Any, self.optimizer).optimizer)
        norm = super()._clip_grad_norm(model)
        return norm if math.isfinite(norm.item()) else torch.zeros(())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            along, told = self.objective.along, self.objective.gather()
            logs["loss"] = sum(loss for task, loss in told.items() if task not in along)
            logs |= {f"{LOSS_OF}{task}": loss for task, loss in told.items() if task in along}
        super().log(logs, *args, **kwargs)

    def _give_up(self, task: str, loss: float, norm: float) -> None:
        kept = Path(str(self.args.output_dir)) / "last-good"
        self.save_model(str(kept))  # the step has not been taken: these weights are still sound
        raise UserError(
            f"training diverged at step {self.state.global_step + 1} (loss {loss:.4g}, gradient norm {norm:.4g})",
            where=f"task {task}; the last good weights are in {kept}",
            instead=f"a smaller --set learning_rate=…{', or another precision,' if self.top.scaled else ''} with "
            "--overwrite",
        )


class RankTrainer(Ranked, TopTrainer):
    """The same in each of several processes."""

    def __init__(self, objective: Objective, by: Engine, **kwargs: Any) -> None:
        self.learner, self.engine = Learner(objective, objective.top), by
        super().__init__(objective, model=self.learner, **kwargs)
        self.add_callback(Forgetting(self))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.learner.reset()


def _trainer(objective: Objective, by: Engine, **kwargs: Any) -> TopTrainer:
    return RankTrainer(objective, by, **kwargs) if by.name else TopTrainer(objective, model=objective, **kwargs)


def _last(folder: Path, resume: bool) -> Path | None:
    """The checkpoint that every process goes on from. Only the first one looks, as what is damaged is deleted."""
    found = None
    if ranks.leads():
        clear(folder, all=not resume)
        found = newest(folder)
    return ranks.gather(found)[0]


class Reporter(TrainerCallback):
    """Tells the caller how many tokens each step trained and what was logged."""

    def __init__(self, steps: Sequence[Step], each: int, progress: Progress) -> None:
        self.sizes = [sum(len(s.ids) for row in step.rows for s in row) for step in steps]
        self.each, self.progress = each, progress  # micro-batches of an optimizer step
        self.done = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done = state.global_step * self.each
        self.progress(sum(self.sizes[: self.done]), {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        upto = min(state.global_step * self.each, len(self.sizes))
        self.progress(sum(self.sizes[self.done : upto]), logs or {})
        self.done = upto


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C finishes the step, saves a checkpoint and raises KeyboardInterrupt; the second one kills."""
    asked = False

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if any(ranks.gather(asked)):  # a signal reaches processes at different steps
                control.should_save = control.should_training_stop = True

    def handle(signum: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, previous)

    trainer.add_callback(Stop())
    previous = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if any(ranks.gather(asked)):
        raise KeyboardInterrupt
