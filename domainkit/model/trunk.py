"""Run the frozen trunk over token sequences, once, and keep what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from domainkit import ranks
from domainkit.model.base import Base
from domainkit.model.split import Trunk, top
from domainkit.model.store import Store, make_room
from domainkit.nets.loss import token_logprobs
from domainkit.types import Sequence as Tokens

BATCH = 1024  # padded tokens per forward pass: enough to keep a CPU busy, and texts of one length seldom need padding
LARGE = 4096  # … on a GPU
SHARD = 8192  # tokens per shard, some 15 seconds of work on two cores: what a kill can cost
TOLERANCE = 1e-4  # relative loss difference up to which float16 on disk is taken
PROBE = 1024  # tokens the dtype is decided on

Progress = Callable[[int], None]  # called with the number of tokens just done


def run(base: Base, layers: int, sequences: Sequence[Tokens], root: Path, *, disk_gb: float, dtype: str = "auto",
        depths: Sequence[int] = (), share: tuple[int, int] = (0, 1),
        progress: Progress = lambda tokens: None) -> Store:  # fmt: skip
    """A store that holds the activations of every sequence; only those it lacks are computed.

    layers: how many last layers the top has. depths: of the trunk, kept as well. root: folder of all stores.
    disk_gb: their budget together.
    dtype: "auto" takes float16 when the measured loss changes by less than 1e-4 relative, else float32.
    share: (which, of how many) of torchrun's processes this is; all of them call this and compute as many shards each,
    and when all have ended, each finds the others'.
    Killed and run again, it redoes at most one shard, with the same batches and so the same bits.
    Raises UserError when budget or disk are too small.
    """
    trunk = Trunk(base, layers, depths)
    store = open_store(base, layers, sequences, root, dtype=dtype, depths=depths)
    shards = [
        shard for shard in plan(sequences, trunk.device) if any(s.digest not in store for batch in shard for s in batch)
    ]
    missing = sum(len(s.ids) for shard in shards for batch in shard for s in batch if s.digest not in store)
    held = {store.folder / f"{store.places[s.digest].shard}.npy" for s in sequences if s.digest in store}
    which, many = share
    if which == 0:
        make_room(root, store.bytes_for(missing), int(disk_gb * 1e9), held)
    if many > 1:
        ranks.wait()  # whoever opens a store sweeps away what another is still writing
    for shard in shards[which::many]:
        entries: list[tuple[str, np.ndarray]] = []
        for batch in shard:
            wanted = [s for s in batch if s.digest not in store]
            entries += [(s.digest, values) for s, values in zip(wanted, forward(trunk, wanted), strict=True)]
            progress(sum(len(s.ids) for s in wanted))
        store.put(entries)
    if many == 1:
        return store
    ranks.wait()
    return open_store(base, layers, sequences, root, dtype=dtype, depths=depths)


def depends_on(base: Base, layers: int, dtype: str, depths: Sequence[int] = ()) -> dict[str, object]:
    """Everything the activations depend on besides the tokens themselves."""
    return {
        "base": base.sha256,
        "bits": base.bits,
        "attention": base.attention,
        "depth": base.depth - layers,
        "compute": str(base.compute),
        "dtype": dtype,
        **({"rows": base.rows} if base.rows else {}),
        **({"positions": base.positions} if base.positions else {}),
        **({"depths": list(depths)} if depths else {}),
    }


def open_store(base: Base, layers: int, sequences: Sequence[Tokens], root: Path, *, dtype: str = "auto",
               depths: Sequence[int] = ()) -> Store:  # fmt: skip
    """The store of this trunk, created when there is none."""
    of = depends_on(base, layers, dtype, depths)
    store = Store.open(root, of)
    if store is not None:
        return store
    chosen, why = (dtype, "as set") if dtype != "auto" else choose_dtype(base, layers, sequences)
    return Store.create(root, of, width=base.width * (len(depths) + 1), dtype=chosen, why=why)


def plan(sequences: Sequence[Tokens], device: torch.device) -> list[list[list[Tokens]]]:
    """Shards of batches of distinct sequences, the longest first; a batch holds sequences of similar length, as many
    as suit the device."""
    distinct = {s.digest: s for s in sequences}
    ordered = sorted(distinct.values(), key=lambda s: (-len(s.ids), s.digest))
    shards: list[list[list[Tokens]]] = []
    room = 0
    for batch in _batches(ordered, BATCH if device.type == "cpu" else LARGE):
        if room <= 0:
            shards.append([])
            room = SHARD
        shards[-1].append(batch)
        room -= sum(len(s.ids) for s in batch)
    return shards


def forward(trunk: Trunk, batch: Sequence[Tokens]) -> list[np.ndarray]:
    """Activations of each sequence of a batch: (tokens, (depths + 1) * width) float32, padding removed."""
    if not batch:
        return []
    longest = max(len(s.ids) for s in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, s in enumerate(batch):
        ids[row, : len(s.ids)] = torch.tensor(s.ids)
    hidden = trunk(ids.to(trunk.device)).float().cpu()  # (rows, longest, (depths + 1) * width)
    return [hidden[row, : len(s.ids)].numpy() for row, s in enumerate(batch)]


@torch.no_grad()
def choose_dtype(base: Base, layers: int, sequences: Sequence[Tokens]) -> tuple[str, str]:
    """("float16" or "float32", the measurement that decided), from the language-model loss of a small sample."""
    sample, tokens = [], 0
    for s in sorted({s.digest: s for s in sequences}.values(), key=lambda s: s.digest):
        sample.append(replace(s, ids=s.ids[:PROBE]))  # the beginning of a long one tells as much
        tokens += len(sample[-1].ids)
        if tokens >= PROBE:
            break
    exact = forward(Trunk(base, layers), sample)
    with np.errstate(over="ignore"):  # an overflow shows in the loss
        rounded = [values.astype(np.float16).astype(np.float32) for values in exact]
    model = top(base, layers)
    full, half = (_loss(base, model, sample, values) for values in (exact, rounded))
    difference = abs(half - full) / full
    dtype = "float16" if difference < TOLERANCE else "float32"  # NaN, from an overflow, compares false
    return dtype, f"float16 changes the loss by {difference:.1e} relative on {tokens} tokens"


def _loss(base: Base, model: PreTrainedModel, sample: Sequence[Tokens], values: Sequence[np.ndarray]) -> float:
    """Mean negative log-likelihood, nats per token, of the base on stored activations."""
    weight = base.head.weight
    total, count = 0.0, 0
    for s, hidden in zip(sample, values, strict=True):
        embeds = torch.from_numpy(hidden)[None].to(base.model.device, base.model.dtype)
        last = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, :-1]
        target = torch.tensor(s.ids[1:], device=last.device)
        total -= float(token_logprobs(last, weight, target).sum())
        count += len(target)
    return total / max(count, 1)


def _batches(ordered: Sequence[Tokens], size: int) -> Iterator[list[Tokens]]:
    batch: list[Tokens] = []
    for s in ordered:
        if batch and len(batch[0].ids) * (len(batch) + 1) > size:
            yield batch
            batch = []
        batch.append(s)
    if batch:
        yield batch
