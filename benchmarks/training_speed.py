"""Training on stored activations against plain PEFT + HF Trainer on the whole model: speed, and proof of equality.

    python benchmarks/training_speed.py [--tokens 12000] [--epochs 5] [--bits 4]

Both sides get the same base with its own tokens (no glossary), the same seed, the same packed batches in the same
order and the same Trainer arguments, in one process, one after the other. Written down: every step's loss on both
sides, the largest difference of any adapter weight, median seconds per step, and seconds end to end (the trunk pass
included).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from domainkit.fit import Step, arguments, fit, plan_steps
from domainkit.model import trunk
from domainkit.model.batch import collate
from domainkit.model.top import DEFAULT, lora_config
from domainkit.prepare import Request, Setting, prepare
from domainkit.recipes import fresh_top
from domainkit.spec import Domain


class PlainSteps(Dataset):
    """The planned micro-batches as token ids: what plain Transformers takes (position ids mark the documents)."""

    def __init__(self, steps: Sequence[Step], labels: Sequence[str]) -> None:
        self.steps, self.labels = steps, {label: i for i, label in enumerate(labels)}

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.steps[index].rows
        ids = {s.digest: torch.tensor(s.ids)[:, None].numpy() for row in rows for s in row}
        batch = collate(rows, lambda digest: ids[digest])
        item = {"input_ids": batch.hidden[..., 0].long(), "position_ids": batch.position_ids}
        if self.labels:
            gold = torch.tensor([self.labels[s.label] for _, s in batch.placed])
            return {**item, "batch": batch, "gold": gold}
        labels = torch.full_like(item["input_ids"], -100).flatten()
        for start, s in batch.placed:
            labels[start + 1 : start + len(s.ids)] = torch.tensor(s.ids[1:])  # the first token is never predicted
        return {**item, "labels": labels.view_as(item["input_ids"])}


class PlainClassifier(nn.Module):
    """The whole PEFT model under the same classification head, as a plain user would write it."""

    accepts_loss_kwargs = False

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, input_ids: Tensor, position_ids: Tensor, batch: Any, gold: Tensor) -> dict[str, Tensor]:
        backbone = self.model.get_base_model().base_model
        states = backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        found = self.head(*batch.states(states.flatten(0, 1)), [s.ids for _, s in batch.placed])
        return {"loss": nn.functional.nll_loss(found, gold)}


class Clock(TrainerCallback):
    """Seconds of every step, batch loading included."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    on_step_end = on_train_begin

    def steps(self) -> list[float]:
        return [b - a for a, b in pairwise(self.times)]


def ours(setting: Setting, seed: int, work: Path) -> dict[str, Any]:
    """Trunk pass into an empty store, then training on it."""
    training, (prepared,) = setting.domain.training, setting.prepared.values()
    began = time.perf_counter()
    store = trunk.run(setting.base, training.layers, prepared.train, work / "activations", disk_gb=20,
                      dtype=training.activations)  # fmt: skip
    after_trunk = time.perf_counter()
    top = fresh_top(setting, seed)
    times = [time.perf_counter()]

    def tick(tokens: int, logs: Mapping[str, float]) -> None:
        if "loss" in logs:
            times.append(time.perf_counter())

    fitted = fit(top, setting.kinds, setting.prepared, store, training,
                 folder=work / "ours", seed=seed, resume=False, progress=tick)  # fmt: skip
    return {
        "losses": [row["loss"] for row in fitted.log],
        "weights": {n.removeprefix("model."): v.detach().clone() for n, v in top.trainable().items()},
        "step": statistics.median(b - a for a, b in pairwise(times[1:])),
        "trunk": after_trunk - began,
        "total": time.perf_counter() - began,
        "dtype": store.dtype,
    }


def plain(setting: Setting, seed: int, work: Path) -> dict[str, Any]:
    """PEFT on the whole model, trained by the Trainer as it comes."""
    training, ((name, prepared),) = setting.domain.training, setting.prepared.items()
    began = time.perf_counter()
    torch.manual_seed(seed)
    head = setting.kinds[name].head(setting.base, prepared)
    torch.manual_seed(seed)
    peft = get_peft_model(
        setting.base.model,
        lora_config(setting.base, layers=training.layers, rank=training.rank, alpha=training.alpha),
    )
    clock = Clock()
    steps = plan_steps(setting.prepared, training, seed)
    arg = arguments(training, work / "plain", seed)
    arg.save_strategy = "no"
    trainer = Trainer(
        model=PlainClassifier(peft, head) if head else peft,
        args=arg,
        train_dataset=PlainSteps(steps, prepared.labels),
        data_collator=lambda items: items[0],
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    weights = {n: v.detach() for n, v in peft.named_parameters() if v.requires_grad}
    if head:
        weights |= {f"heads.{name}.{n}": v.detach() for n, v in head.named_parameters()}
    return {
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "weights": weights,
        "step": statistics.median(clock.steps()[1:]),
        "total": time.perf_counter() - began,
    }


def compare(task: str, args: argparse.Namespace, store_dtype: str) -> dict[str, Any]:
    """Both sides on one task."""
    overrides = ['glossary=""', f"epochs={args.epochs}", f"bits={args.bits}", f'activations="{store_dtype}"',
                 "save_steps=100000", f"lm.tokens={args.tokens}",
                 f"regulation.train_examples={args.examples}"]  # fmt: skip
    domain = Domain.load("finance", overrides=overrides)
    setting = prepare(Request("finance", tasks=(task,), seed=args.seed), domain)
    alone = {name: replace(ready, adapter=DEFAULT) for name, ready in setting.prepared.items()}
    setting = replace(setting, prepared=alone)  # plain PEFT knows one adapter
    with tempfile.TemporaryDirectory() as folder:
        a = ours(setting, args.seed, Path(folder))
        b = plain(setting, args.seed, Path(folder))
    assert a["weights"].keys() == b["weights"].keys(), "both sides must train the same weights"
    losses = [abs(x - y) / abs(y) for x, y in zip(a["losses"], b["losses"], strict=True)]
    weights = max(float((a["weights"][n] - w).abs().max()) for n, w in b["weights"].items())
    moved = max(float(w.abs().max()) for w in b["weights"].values())
    return {
        "task": task,
        "steps": len(a["losses"]),
        "stored as": a["dtype"],
        "largest relative loss difference": max(losses),
        "largest adapter weight difference": weights,
        "largest adapter weight": moved,
        "step seconds, activations": a["step"],
        "step seconds, plain": b["step"],
        "step ratio": b["step"] / a["step"],
        "trunk seconds": a["trunk"],
        "total seconds, activations": a["total"],
        "total seconds, plain": b["total"],
        "end-to-end ratio": b["total"] / a["total"],
        "losses": [a["losses"], b["losses"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=12_000, help="language-model tokens per epoch")
    parser.add_argument("--examples", type=int, default=240, help="regulation paragraphs per epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=["regulation", "lm"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "auto"])
    args = parser.parse_args()
    results, load = [], [os.getloadavg()[0]]
    for task in args.tasks:
        for dtype in args.dtypes:
            results.append(compare(task, args, dtype))
            print(json.dumps({k: v for k, v in results[-1].items() if k != "losses"}, indent=1), flush=True)
    load.append(os.getloadavg()[0])
    print(write_results("training_speed", results, load=load))


if __name__ == "__main__":
    main()
