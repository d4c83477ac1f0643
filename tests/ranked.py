"""One of the processes that torchrun starts for tests/test_ranks.py: trains the tests' small top, whole and cut off.

python -m torch.distributed.run --nproc_per_node 2 -m tests.ranked BASE STORE OUT KEY=VALUE…
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from domainkit import ranks
from domainkit.checkpoint import WEIGHTS, newest
from domainkit.fit import Fitted
from domainkit.model import trunk
from domainkit.model.top import Top
from domainkit.spec import Training
from tests.test_fit import TRAINING, Case, Crash, at_step, copies, crash, make_case

CUT = 4  # the step after which a run is cut off
SHARD = 64  # tokens of a batch and of a shard of the trunk's pass: several for each process


def join(training: Training) -> None:
    """As a process does that fits once; here each fit begins anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    ranks.join(deepspeed=bool(training.deepspeed), fsdp=bool(training.fsdp))


def tell(out: Path, name: str, top: Top, fitted: Fitted) -> None:
    if ranks.leads():
        save_file(copies(top), out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(fitted.log))


def interrupted(case: Case, folder: Path, training: Training) -> None:
    """The last process gets a signal in a step: all of them save and stop after the same one."""
    stop = at_step(CUT, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        case.fit(folder, training=training, progress=None if ranks.leads() else stop)
    except KeyboardInterrupt:
        return
    raise AssertionError("nothing was interrupted")


def harm(folder: Path) -> None:
    """The newest checkpoint is damaged: the first process deletes it, and all go back to the one before."""
    with ranks.in_turn():
        if ranks.leads():
            last = newest(folder)
            assert last and last.name > f"checkpoint-{TRAINING.save_steps}"
            (last / WEIGHTS).write_bytes(b"")


def share_the_trunk(case: Case, root: Path) -> None:
    trunk.SHARD = trunk.BATCH = SHARD
    sequences = [s for prepared in case.tasks.values() for s in prepared.train]
    with ranks.in_turn():
        trunk.open_store(case.base, 2, sequences, root, dtype="float32")
    trunk.run(case.base, 2, sequences, root, disk_gb=1, dtype="float32", share=(ranks.rank(), ranks.count()))


def main() -> None:
    base, store, out = map(Path, sys.argv[1:4])
    chosen: dict[str, Any] = dict(pair.split("=") for pair in sys.argv[4:])
    training = replace(TRAINING, **{k: int(v) if v.isdigit() else v for k, v in chosen.items()})
    torch.set_num_threads(1)
    join(training)
    with ranks.in_turn():
        case = make_case(base, store)
    tell(out, "whole", *case.fit(out / "whole", training=training))
    join(training)
    try:
        case.fit(out / "crashed", training=training, progress=at_step(CUT, crash))
    except Crash:
        join(training)
        tell(out, "crashed", *case.fit(out / "crashed", training=training, resume=True))
    if not (training.deepspeed or training.fsdp):
        share_the_trunk(case, out / "shared")
        join(training)
        interrupted(case, out / "interrupted", training)
        harm(out / "interrupted")
        join(training)
        tell(out, "interrupted", *case.fit(out / "interrupted", training=training, resume=True))
    ranks.leave()


if __name__ == "__main__":
    main()
