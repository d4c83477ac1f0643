"""Run the frozen trunk over token sequences, once, and keep what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from domainkit import ranks
from domainkit.model.attention import NAME, choosing
from domainkit.model.base import Base
from domainkit.model.split import Trunk, top
from domainkit.model.store import Store, make_room
from domainkit.nets.loss import token_logprobs
from domainkit.types import Sequence as Tokens
from domainkit.types import UserError

BATCH = 1024  # padded tokens per forward pass: enough to keep a CPU busy, and texts of one length seldom need padding
LARGE = 4096  # … on a GPU
SHARD = 8192  # tokens per shard, some 15 seconds of work on two cores: what a kill can cost
TOGETHER = 16384  # tokens that pass a streamed layer each time it is read and quantized, a sixth of the time then
LARGE_TOGETHER = 131072  # … on a GPU, which computes faster than a disk gives it the layers
TOLERANCE = 1e-4  # relative loss difference up to which float16 on disk is taken
PROBE = 1024  # tokens the dtype is decided on

Progress = Callable[[int], None]  # called with the number of tokens just done
Shard = list[list[Tokens]]  # batches
Block = list[Shard]  # that go through the trunk together


def run(base: Base, layers: int, sequences: Sequence[Tokens], root: Path, *, disk_gb: float, dtype: str = "auto",
        depths: Sequence[int] = (), share: tuple[int, int] = (0, 1),
        progress: Progress = lambda tokens: None) -> Store:  # fmt: skip
    """A store that holds the activations of every sequence; only those it lacks are computed.

    layers: how many last layers the top has. depths: of the trunk, kept as well. root: folder of all stores.
    disk_gb: their budget together.
    dtype: "auto" takes float16 when the measured loss changes by less than 1e-4 relative, else float32.
    share: (which, of how many) of torchrun's processes this is; all of them call this and compute as many shards each,
    and when all have ended, each finds the others'.
    Killed and run again, it redoes at most one shard (of a streamed base: those that pass its layers together), with
    the same batches and so the same bits.
    Raises UserError when budget or disk are too small.
    """
    store = ready(base, layers, sequences, root, disk_gb=disk_gb, dtype=dtype, depths=depths, share=share)
    complete(store, Trunk(base, layers, depths), sequences, share=share, progress=progress)
    return store


def ready(base: Base, layers: int, sequences: Sequence[Tokens], root: Path, *, disk_gb: float, dtype: str = "auto",
          depths: Sequence[int] = (), share: tuple[int, int] = (0, 1)) -> Store:  # fmt: skip
    """What `run` begins with: the store of this trunk without what is damaged, and with room for what it lacks."""
    which, many = share
    if which:
        ranks.wait()  # the first one deletes what is damaged
    store = open_store(base, layers, sequences, root, dtype=dtype, depths=depths)
    if which:
        return store
    store.verify(s.digest for s in sequences)
    missing = {s.digest: len(s.ids) for s in sequences if s.digest not in store}
    held = store.files(s.digest for s in sequences)
    make_room(root, store.bytes_for(sum(missing.values())), int(disk_gb * 1e9), held)
    if many > 1:
        ranks.wait()
    return store


def complete(store: Store, trunk: Trunk, sequences: Sequence[Tokens], *, share: tuple[int, int] = (0, 1),
             progress: Progress = lambda tokens: None) -> None:  # fmt: skip
    """What `run` goes on with: compute what the store lacks, this process its share of it."""
    which, many = share
    mine = plan(sequences, trunk.device)[which::many]  # dealt before looking at what is missing: that may change
    for block in blocks(trunk, lacking(store, mine)):
        fill(store, trunk, block, progress)
    if many > 1:
        ranks.wait()
        store.refresh()


def fill(store: Store, trunk: Trunk, block: Block, progress: Progress = lambda tokens: None) -> None:
    """Write each shard of a block to the store."""
    passed = forward_all(trunk, [batch for shard in block for batch in shard], progress)
    for shard in block:
        store.put([(s.digest, values) for batch in shard for s, values in zip(batch, next(passed), strict=True)])


def lacking(store: Store, shards: Iterable[Shard]) -> list[Shard]:
    """The shards without the sequences that the store has; those that it has all of are left out."""
    missing = [[[s for s in batch if s.digest not in store] for batch in shard] for shard in shards]
    return [shard for shard in missing if any(shard)]


def depends_on(base: Base, layers: int, dtype: str, depths: Sequence[int] = ()) -> dict[str, object]:
    """Everything the activations depend on besides the tokens themselves."""
    return {
        "base": base.sha256,
        "bits": base.bits,
        "attention": base.attention,
        "depth": base.depth - layers,
        "rest": str(base.model.dtype),  # norms, attention: of 4 bits not what the products are computed in
        "compute": str(base.compute),
        "dtype": dtype,
        **(choosing(base.model.device.type) if base.attention == NAME else {}),
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
    return Store.create(root, of, width=stored(base, depths), dtype=chosen, why=why)


def stored(base: Base, depths: Sequence[int]) -> int:
    """Numbers that a token's activations are."""
    return base.width * (len(depths) + 1)


def find_store(base: Base, layers: int, root: Path, *, dtype: str, depths: Sequence[int]) -> Store:
    """The store of this trunk, which another process has created. Raises UserError when there is none."""
    store = Store.open(root, depends_on(base, layers, dtype, depths))
    if store is None:
        raise UserError(f"no activations of {base.path} in {base.bits} bits, computed in {base.compute}", where=root,
                        instead="machines of one kind, with DOMAINKIT_CACHE on a disk that all share")  # fmt: skip
    return store


def plan(sequences: Sequence[Tokens], device: torch.device) -> list[Shard]:
    """Shards of batches of distinct sequences, the longest first; a batch holds sequences of similar length, as many
    as suit the device."""
    distinct = {s.digest: s for s in sequences}
    ordered = sorted(distinct.values(), key=lambda s: (-len(s.ids), s.digest))
    shards: list[Shard] = []
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
    return _cut(batch, trunk(_padded(batch).to(trunk.device))) if batch else []


def forward_all(trunk: Trunk, batches: Sequence[Sequence[Tokens]],
                progress: Progress = lambda tokens: None) -> Iterator[list[np.ndarray]]:  # fmt: skip
    """`forward` of each batch; a streamed trunk reads each of its layers once for all of them."""
    sizes = [sum(len(s.ids) for s in batch) for batch in batches]
    if not trunk.streamed:
        for batch, size in zip(batches, sizes, strict=True):
            values = forward(trunk, batch)
            progress(size)
            yield values
        return
    some = [i for i, batch in enumerate(batches) if batch]
    steps = 0  # tokens times layers

    def done(number: int) -> None:
        nonlocal steps
        before = steps // len(trunk.layers)
        steps += sizes[some[number]]
        progress(steps // len(trunk.layers) - before)

    states = iter(trunk.each([_padded(batches[i]).to(trunk.device) for i in some], done))
    for batch in batches:
        yield _cut(batch, next(states)) if batch else []


@torch.no_grad()
def choose_dtype(base: Base, layers: int, sequences: Sequence[Tokens]) -> tuple[str, str]:
    """("float16" or "float32", the measurement that decided), from the language-model loss of a small sample."""
    sample, tokens = [], 0
    for s in sorted({s.digest: s for s in sequences}.values(), key=lambda s: s.digest):
        sample.append(replace(s, ids=s.ids[:PROBE]))  # the beginning of a long one tells as much
        tokens += len(sample[-1].ids)
        if tokens >= PROBE:
            break
    trunk = Trunk(base, layers)
    # in batches of like lengths: short texts padded to a long one's would be many times as large
    together = [batch for shard in plan(sample, trunk.device) for batch in shard]
    sample = [s for batch in together for s in batch]
    exact = [values for found in forward_all(trunk, together) for values in found]
    with np.errstate(over="ignore"):  # an overflow shows in the loss
        rounded = [values.astype(np.float16).astype(np.float32) for values in exact]
    model = top(base, layers)
    full, half = (_loss(base, model, sample, values) for values in (exact, rounded))
    difference = abs(half - full) / full
    dtype = "float16" if difference < TOLERANCE else "float32"  # NaN, from an overflow, compares false
    return dtype, f"float16 changes the loss by {difference:.1e} relative on {tokens} tokens"


def _loss(base: Base, model: PreTrainedModel, sample: Sequence[Tokens], values: Sequence[np.ndarray]) -> float:
    """Mean negative log-likelihood, nats per token, of the base on stored activations."""
    weight = base.output_rows.to(base.model.dtype)
    total, count = 0.0, 0
    for s, hidden in zip(sample, values, strict=True):
        embeds = torch.from_numpy(hidden)[None].to(base.model.device, base.model.dtype)
        last = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, :-1]
        target = torch.tensor(s.ids[1:], device=last.device)
        total -= float(token_logprobs(last, weight, target).sum())
        count += len(target)
    return total / max(count, 1)


def _padded(batch: Sequence[Tokens]) -> torch.Tensor:
    """Token ids of a batch: (rows, longest) int64."""
    ids = torch.zeros(len(batch), max(len(s.ids) for s in batch), dtype=torch.long)
    for row, s in enumerate(batch):
        ids[row, : len(s.ids)] = torch.tensor(s.ids)
    return ids


def _cut(batch: Sequence[Tokens], states: torch.Tensor) -> list[np.ndarray]:
    """States (rows, longest, width) of a batch, sequence by sequence, padding removed: (tokens, width) float32."""
    states = states.float().cpu()
    return [states[row, : len(s.ids)].numpy() for row, s in enumerate(batch)]


def blocks(trunk: Trunk, shards: Iterable[Shard]) -> Iterator[Block]:
    """Shards that go through the trunk together: one by one, but for a streamed trunk."""
    size = 0 if not trunk.streamed else TOGETHER if trunk.device.type == "cpu" else LARGE_TOGETHER
    block: Block = []
    tokens = 0
    for shard in shards:
        length = sum(len(s.ids) for batch in shard for s in batch)
        if block and tokens + length > size:
            yield block
            block, tokens = [], 0
        block.append(shard)
        tokens += length
    if block:
        yield block


def _batches(ordered: Sequence[Tokens], size: int) -> Iterator[list[Tokens]]:
    batch: list[Tokens] = []
    for s in ordered:
        if batch and len(batch[0].ids) * (len(batch) + 1) > size:
            yield batch
            batch = []
        batch.append(s)
    if batch:
        yield batch
