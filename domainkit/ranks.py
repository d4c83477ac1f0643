"""The processes that torchrun has started for one run: the first prepares and writes, all of them train.

What torchrun tells each process stands in its environment (docs.pytorch.org/docs/stable/elastic/run.html). A process
that it has not started is alone: it leads, and waits for nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=7)  # how long the others wait for the first: a trunk pass takes hours
STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def launched() -> bool:
    """Whether torchrun has started this process, be it the only one."""
    return all(name in os.environ for name in STARTED)


def count() -> int:
    """How many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def beside() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) if launched() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def leads() -> bool:
    """Whether this is the first process: the one that writes, and speaks."""
    return rank() == 0


def place() -> str:
    """The device of this process: a GPU of its own where there are any, else the CPU."""
    import torch

    return f"cuda:{os.environ['LOCAL_RANK'] if launched() else 0}" if torch.cuda.is_available() else "cpu"


def join(*, deepspeed: bool = False, fsdp: bool = False) -> None:
    """Meet the other processes: over NCCL where there are GPUs, else over gloo. Nothing happens in a process alone.

    deepspeed, fsdp: what will wrap the model; accelerate must know now, since its own state, which this sets up, is
    what the Trainer finds.
    """
    if not launched():
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    cpu = not torch.cuda.is_available()
    if deepspeed:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        if cpu:
            from deepspeed import ops

            ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does, and needs no C++ compiler here and now
    # accelerate takes DeepSpeed for a matter of GPUs: told "cpu", it would pass over it in silence …
    state = PartialState(cpu=cpu and not deepspeed, backend="gloo" if cpu else None, timeout=PATIENCE)
    if fsdp and cpu:
        state.distributed_type = DistributedType.MULTI_GPU  # … and FSDP2 as well, though PyTorch shards over gloo


def wait() -> None:
    """Until every process has come here."""
    if launched():
        import torch.distributed as dist

        dist.barrier()


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process goes through the block, then all others at once: they find what it has written."""
    if not leads():
        wait()
    yield  # whoever fails in here ends, and torchrun ends the others with it
    if leads():
        wait()


def total(values: Sequence[float]) -> list[float]:
    """Each value summed over the processes."""
    if not launched():
        return list(values)
    import torch
    import torch.distributed as dist

    summed = torch.tensor(values, dtype=torch.float64, device=place())
    dist.all_reduce(summed)
    return summed.tolist()


def gather(value: Any) -> list[Any]:
    """The value of every process, in their order."""
    if not launched():
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def leave() -> None:
    """Part from the others: from here on nobody waits for this process."""
    if launched():
        import torch.distributed as dist

        dist.destroy_process_group()
