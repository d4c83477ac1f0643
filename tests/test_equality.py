"""The claim everything rests on: training the top on stored activations is training the whole model.

Both sides get the same base, seed, micro-batches and Trainer arguments. One side is the top on float32 activations,
the other plain `get_peft_model` on the whole model under a plain Hugging Face Trainer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from domainkit.engines import Engine, accumulation
from domainkit.fit import arguments, fit
from domainkit.kinds import Kind, Prepared, classify, lm
from domainkit.model import trunk
from domainkit.model.base import load_base
from domainkit.model.batch import collate
from domainkit.model.top import adapt, lora_config
from domainkit.spec import Training
from domainkit.steps import Step, deal, plan_steps
from domainkit.types import Sequence as Tokens
from tests.tiny import FAMILIES, make_base

LABELS = ("A", "B", "Z")
# 4 to 8 optimizer steps; rows of several documents; micro-batches of different sizes
TRAINING = Training(rank=4, alpha=8, learning_rate=2e-3, epochs=2, batch=2, context=48, bits=32,
                    activations="float32", save_steps=1000)  # fmt: skip
LOSS = 1e-5  # relative, at every step; the claim is 1e-4
WEIGHT = 3e-5  # absolute; the weights move by some 1e-2, Adam enlarges the rounding of tiny gradients


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Trained:
    losses: list[float]  # of every optimizer step
    norms: list[float]  # of every optimizer step's gradient
    weights: Mapping[str, Tensor]  # name in the plain PEFT model (or "heads.…") → value


def corpus(seed: int = 0, count: int = 12) -> Prepared:
    draw = random.Random(seed)
    made = []
    for i in range(count):
        ids = (1, *(draw.randrange(3, 300) for _ in range(draw.randrange(5, 40))))
        made.append(Tokens(ids, 3 * len(ids), f"document {i}", label=LABELS[i % 3]))
    return Prepared(tuple(made), (), labels=LABELS, labelled=tuple(made))


def kind(name: str) -> Kind:
    return lm.Kind("task", lm.Settings()) if name == "lm" else classify.Kind("task", classify.Settings())


def ours(folder: Path, work: Path, name: str, training: Training, seed: int) -> Trained:
    """The top on stored activations."""
    base, prepared, task = load_base(folder, bits=training.bits), corpus(), kind(name)
    store = trunk.run(base, training.layers, prepared.train, work / "activations", disk_gb=1, dtype="float32")
    torch.manual_seed(seed)
    head = task.head(base, prepared)
    heads = {"task": head} if head else {}
    top = adapt(base, heads, layers=training.layers, rank=training.rank, alpha=training.alpha, seed=seed)
    fitted = fit(top, {"task": task}, {"task": prepared}, store, training, folder=work / "ours", seed=seed,
                 resume=False, progress=lambda tokens, logs: None)  # fmt: skip
    weights = {name.removeprefix("model."): value.detach().clone() for name, value in top.trainable().items()}
    return Trained([row["loss"] for row in fitted.log], [row["grad_norm"] for row in fitted.log], weights)


def plain(folder: Path, work: Path, name: str, training: Training, seed: int) -> Trained:
    """PEFT and Trainer as they come, on the whole model."""
    base, prepared, task = load_base(folder, bits=training.bits), corpus(), kind(name)
    torch.manual_seed(seed)
    head = task.head(base, prepared)
    torch.manual_seed(seed)
    config = lora_config(base, layers=training.layers, rank=training.rank, alpha=training.alpha)
    model: nn.Module = get_peft_model(base.model, config)
    peft = model
    if head:
        model = PlainClassifier(model, head)
    settings = arguments(training, work / "plain", seed, Engine(""))
    settings.save_strategy = "no"
    steps = deal(plan_steps({"task": prepared}, training, seed), accumulation(training))
    assert all(step.rows for step in steps)  # plain Transformers has no micro-batches without text
    trainer = Trainer(
        model=model, args=settings, train_dataset=PlainSteps(steps, bool(head)), data_collator=lambda items: items[0]
    )
    trainer.train()
    weights = {name: value.detach() for name, value in peft.named_parameters() if value.requires_grad}
    if head:
        weights |= {f"heads.task.{name}": value.detach() for name, value in head.named_parameters()}
    log = [row for row in trainer.state.log_history if "loss" in row]
    return Trained([row["loss"] for row in log], [row["grad_norm"] for row in log], weights)


class PlainSteps(Dataset):
    """Packed token ids as plain Transformers takes them: position ids tell the documents of a row apart."""

    def __init__(self, steps: Sequence[Step], classify: bool) -> None:
        self.steps, self.classify = steps, classify

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.steps[index].rows
        ids = {s.digest: torch.tensor(s.ids)[:, None].numpy() for row in rows for s in row}
        batch = collate(rows, ids.__getitem__)
        item = {"input_ids": batch.hidden[..., 0].long(), "position_ids": batch.position_ids}
        if self.classify:
            return {**item, "batch": batch, "labels": torch.tensor([LABELS.index(s.label) for _, s in batch.placed])}
        labels = torch.full_like(item["input_ids"], -100).flatten()
        for start, s in batch.placed:
            labels[start + 1 : start + len(s.ids)] = torch.tensor(s.ids[1:])
        return {**item, "labels": labels.view_as(item["input_ids"])}


class PlainClassifier(nn.Module):
    """The whole PEFT model under the classification head, as a plain user would write it."""

    accepts_loss_kwargs = True  # the Trainer counts the labels of a whole optimizer step

    def __init__(self, model: Any, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, batch: Any, labels: Tensor, num_items_in_batch: Any = None
    ) -> dict[str, Tensor]:
        backbone = self.model.get_base_model().base_model
        states = backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        found = self.head(*batch.states(states.flatten(0, 1)), [s.ids for _, s in batch.placed])  # log-probabilities
        total = nn.functional.nll_loss(found, labels, reduction="sum")
        return {"loss": total / (len(labels) if num_items_in_batch is None else num_items_in_batch)}


def differences(a: Trained, b: Trained) -> tuple[float, float]:
    """Largest relative difference of any step's loss, largest absolute difference of any weight."""
    assert a.weights.keys() == b.weights.keys()
    losses = [abs(x - y) / abs(y) for x, y in zip(a.losses, b.losses, strict=True)]
    return max(losses), max(float((a.weights[name] - b.weights[name]).abs().max()) for name in b.weights)


CASES = [
    *((family, "lm", bits, 2) for family in FAMILIES for bits in (32, 4)),
    ("llama", "classify", 4, 2),
    ("deepseek_v3", "classify", 32, 2),
    *(("llama", name, 32, 1) for name in ("lm", "classify")),  # rows at once, of two
]


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize(("family", "name", "bits", "rows"), CASES)
def test_same_losses_and_same_weights(tmp_path: Path, family: str, name: str, bits: int, rows: int) -> None:
    folder = make_base(tmp_path / "base", family)
    training = replace(TRAINING, bits=bits, micro_batch=rows)
    a, b = (side(folder, tmp_path, name, training, seed=3) for side in (ours, plain))
    assert len(b.losses) == len(plan_steps({"task": corpus()}, training, 3)) >= 4
    loss, weight = differences(a, b)
    assert loss < LOSS
    assert weight < WEIGHT
    assert a.norms == pytest.approx(b.norms, rel=1e-4)
    moved = max(float(value.abs().max()) for name, value in b.weights.items() if "lora_B" in name)
    assert moved > 100 * WEIGHT  # from 0: training did something that could have differed


def test_bfloat16_products_round_the_same_rows_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sequence alone in its batch, in the trunk and in training, as its neighbours change how it is rounded. Both
    sides sum their losses in another order, and a weight that differs by 1e-9 rounds to another bfloat16."""
    monkeypatch.setattr("domainkit.model.precision.quick", lambda device: True)
    monkeypatch.setattr(trunk, "BATCH", 1)
    folder, training = make_base(tmp_path / "base"), replace(TRAINING, bits=4, batch=1)
    a, b = (side(folder, tmp_path, "lm", training, seed=3) for side in (ours, plain))
    assert a.losses[0] == pytest.approx(b.losses[0], rel=1e-6)
    assert differences(a, b)[0] < 1e-3


def test_another_seed_is_told_apart(tmp_path: Path) -> None:
    """The comparison can fail: other draws, another order, other losses."""
    folder = make_base(tmp_path / "base")
    a = ours(folder, tmp_path / "a", "lm", TRAINING, seed=3)
    b = plain(folder, tmp_path / "b", "lm", TRAINING, seed=4)
    loss, weight = differences(a, b)
    assert loss > 100 * LOSS
    assert weight > 100 * WEIGHT


def test_a_slightly_different_trunk_is_told_apart(tmp_path: Path) -> None:
    """One matrix below the top, 1 % larger, shows in losses and weights."""
    folder, other = make_base(tmp_path / "base"), make_base(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    a = ours(folder, tmp_path / "a", "lm", TRAINING, seed=3)
    b = plain(other, tmp_path / "b", "lm", TRAINING, seed=3)
    loss, weight = differences(a, b)
    assert loss > LOSS
    assert weight > WEIGHT
