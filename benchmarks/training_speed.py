"""Training on stored activations against plain PEFT + HF Trainer on the whole model: speed, and proof of equality.

    python benchmarks/training_speed.py [--tokens 12000] [--epochs 5] [--bits 4]

Both sides get the same base with its own tokens (no glossary), the same seed, the same packed batches in the same
order and the same Trainer arguments, in one process, one after the other. Written down: every step's loss on both
sides, the largest difference of any adapter weight, median seconds per step, and seconds end to end (the trunk pass
included), beside the ratio that stored activations can bring at most (`at_most`). Two more sides train plain PEFT on
the same texts, a classifier's, as its users do: as a Trainer batches them unless told otherwise, eight at a time,
padded to the longest; and besides prepared as PEFT's guide has it for quantized bases
(`prepare_model_for_kbit_training`), which computes all layers anew in the backward pass and goes back through them.

Products are in float32 unless `--precision auto` is given: in bfloat16 the two sides are rounded differently.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from domainkit.engines import Engine
from domainkit.fit import arguments, fit
from domainkit.kinds import Prepared
from domainkit.model import trunk
from domainkit.model.base import Base
from domainkit.model.batch import collate
from domainkit.model.top import DEFAULT, lora_config
from domainkit.prepare import Request, Setting, prepare
from domainkit.recipes import fresh_top
from domainkit.spec import Domain, Training
from domainkit.steps import Step, plan_steps

PADDED = 8  # texts of a padded batch: what the Trainer takes when nothing is said


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


def padded(prepared: Prepared, task: str, training: Training, seed: int) -> list[Step]:
    """Micro-batches of PADDED texts, each in a row of its own, every epoch shuffled anew."""
    draw, steps = random.Random(seed), list[Step]()
    for _ in range(training.epochs):
        texts = draw.sample(prepared.train, len(prepared.train))
        steps += [Step(task, tuple((s,) for s in texts[i : i + PADDED])) for i in range(0, len(texts), PADDED)]
    return steps


def plain(setting: Setting, seed: int, work: Path, steps: Sequence[Step], *, guide: bool = False) -> dict[str, Any]:
    """PEFT on the whole model, trained by the Trainer as it comes. guide: prepared as PEFT's says, and left so."""
    training, ((name, prepared),) = setting.domain.training, setting.prepared.items()
    began = time.perf_counter()
    torch.manual_seed(seed)
    head = setting.kinds[name].head(setting.base, prepared)
    torch.manual_seed(seed)
    peft = get_peft_model(
        prepare_model_for_kbit_training(setting.base.model) if guide else setting.base.model,
        lora_config(setting.base, layers=training.layers, rank=training.rank, alpha=training.alpha),
    )
    clock = Clock()
    arg = arguments(training, work / "plain", seed, Engine(""))
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
    peft.unload()  # the base is as it was
    return {
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "weights": weights,
        "step": statistics.median(clock.steps()[1:]),
        "total": time.perf_counter() - began,
    }


def at_most(base: Base, training: Training, *, head: bool) -> float:
    """How many times as fast stored activations can make all epochs, trunk pass included, when a matrix product takes
    as long on either side and nothing else takes time.

    The unit is a layer's forward pass. Its backward pass takes one as well, for frozen weights need no gradient, and
    is taken through the trained layers alone. head: the language model's, forward and backward, is in every step.
    """
    layer = sum(m.in_features * m.out_features for m in base.layers()[0].modules() if isinstance(m, nn.Linear))
    top, output = training.layers, 2 * base.head.weight.numel() / layer if head else 0.0
    whole = training.epochs * (base.depth + top + output)
    return whole / (base.depth - top + training.epochs * (2 * top + output))


def compare(task: str, args: argparse.Namespace, store_dtype: str) -> dict[str, Any]:
    """Both sides on one task."""
    overrides = ['glossary=""', f"epochs={args.epochs}", f"bits={args.bits}", f"precision={args.precision}",
                 f'activations="{store_dtype}"', "save_steps=100000", f"lm.tokens={args.tokens}",
                 f"regulation.train_examples={args.examples}"]  # fmt: skip
    domain = Domain.load("finance", overrides=overrides)
    setting = prepare(Request("finance", tasks=(task,), seed=args.seed), domain)
    alone = {name: replace(ready, adapter=DEFAULT) for name, ready in setting.prepared.items()}
    setting, training = replace(setting, prepared=alone), domain.training  # plain PEFT knows one adapter
    same = plan_steps(setting.prepared, training, args.seed)
    head = bool(alone[task].labels)  # a classifier's; texts of up to 512 tokens nobody pads eight at a time
    short = padded(alone[task], task, training, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        stored = ours(setting, args.seed, Path(folder))
        whole = plain(setting, args.seed, Path(folder), same)
        apart = {"padded": plain(setting, args.seed, Path(folder), short)} if head else {}
        if head and args.bits < 16:
            apart["padded, as PEFT's guide"] = plain(setting, args.seed, Path(folder), short, guide=True)
    told = {
        "task": task,
        "products": str(setting.base.compute).removeprefix("torch."),
        "tokens per epoch": sum(len(s.ids) for s in alone[task].train),
        **equality(stored, whole),
    }
    told |= {
        "step seconds, activations": stored["step"],
        "step seconds, plain": whole["step"],
        "step ratio": whole["step"] / stored["step"],
        "trunk seconds": stored["trunk"],
        "total seconds, activations": stored["total"],
        "total seconds, plain": whole["total"],
        "end-to-end ratio": whole["total"] / stored["total"],
        "end-to-end ratio at most": at_most(setting.base, training, head=not head),
    }
    for name, side in apart.items():
        told[f"total seconds, plain {name}"] = side["total"]
        told[f"end-to-end ratio, plain {name}"] = side["total"] / stored["total"]
    return told | {"losses": [stored["losses"], whole["losses"]]}


def equality(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """How far two sides are apart that took the same steps."""
    assert a["weights"].keys() == b["weights"].keys(), "both sides must train the same weights"
    return {
        "steps": len(a["losses"]),
        "stored as": a["dtype"],
        "largest relative loss difference": max(
            abs(x - y) / abs(y) for x, y in zip(a["losses"], b["losses"], strict=True)
        ),
        "largest adapter weight difference": max(
            float((a["weights"][n] - w).abs().max()) for n, w in b["weights"].items()
        ),
        "largest adapter weight": max(float(w.abs().max()) for w in b["weights"].values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=12_000, help="language-model tokens per epoch")
    parser.add_argument("--examples", type=int, default=240, help="regulation paragraphs per epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--precision", default="float32", help="of products: auto, float32, bfloat16")
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
