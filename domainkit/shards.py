"""A map over numbered shards, on datatrove: each is marked when it is complete, and what has no mark is done again.

The marks are datatrove's own (`completions/00007`), so any of its executors goes on where another one stopped: the
processes of this machine, Slurm's, or those of Ray. Importing this module needs datatrove.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.logging import logger

from domainkit.progress import say
from domainkit.types import UserError

Task = Callable[[int], object]  # a shard's number; can be pickled, and ends with the shard whole on disk
Advance = Callable[[int], None]
SILENT = 1  # as datatrove's local rank: only errors are printed
POLL = 5.0  # seconds between looks at Slurm's queue


class Shards(PipelineExecutor):
    """`task` for each of `count` shards; marks and logs lie in `folder`.

    datatrove's own local executor waits for ever for a shard whose process was killed: hence this one.
    """

    def __init__(self, task: Task, count: int, folder: Path) -> None:
        super().__init__([partial(_step, task)], logging_dir=str(folder))
        self.count = count

    @property
    def world_size(self) -> int:
        return self.count

    def get_distributed_env(self, node_rank: int = -1) -> Any:
        names = ("node_ips", "cpus_per_task", "mem_per_cpu", "gpus_on_node", "executor")
        return {f"datatrove_{name}": "" for name in names}

    def run(self, workers: int = 1, advance: Advance = lambda shards: None) -> None:
        """All shards that have no mark, by processes of this machine; those of a killed one are done again.

        Raises UserError when processes are killed before they complete any.
        """
        while left := self.get_incomplete_ranks():
            try:
                self._pool(left, min(workers, len(left)), advance)
            except BrokenProcessPool:
                if len(self.get_incomplete_ranks()) == len(left):
                    raise UserError("worker processes were killed before they completed a shard", where="--workers",
                                    instead="fewer of them, if memory was short") from None  # fmt: skip
                say("a worker process was killed: what it had begun is done again")

    def _pool(self, left: list[int], workers: int, advance: Advance) -> None:
        threads = max(1, torch.get_num_threads() // workers)
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (threads,))
        try:
            for done in as_completed([pool.submit(self._run_for_rank, number, SILENT) for number in left]):
                done.result()
                advance(1)
        finally:
            pool.shutdown(cancel_futures=True)

    def on_slurm(self, options: Mapping[str, Any], advance: Advance = lambda shards: None) -> None:
        """All shards that have no mark, as a job array; waits for its end.

        options: of datatrove's `SlurmPipelineExecutor`. Raises UserError when the job has ended and shards are missing.
        """
        own = {"job_name": "domainkit", "venv_path": f"{sys.prefix}/bin/activate", "mail_type": "NONE"}
        try:
            job = SlurmPipelineExecutor(self.pipeline, tasks=self.count, logging_dir=self.logging_dir,
                                        **{**own, **options})  # fmt: skip
            job.run()
        except TypeError as error:
            raise UserError(f"not what SlurmPipelineExecutor takes: {error}", where="--engine") from None
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"Slurm does not take the job: {error}", where="--engine") from None
        left = len(self.get_incomplete_ranks())
        while left:
            queued = subprocess.run(["squeue", "--noheader", "--jobs", str(job.job_id)], capture_output=True, text=True)
            before, left = left, len(self.get_incomplete_ranks())
            advance(before - left)
            if left and not queued.stdout.strip():
                raise UserError(f"the job has ended, and {left} of {self.count} shards are not complete",
                                where=job.slurm_logs_folder, instead="the same command again")  # fmt: skip
            if left:
                time.sleep(POLL)

    def on_ray(self, workers: int, advance: Advance = lambda shards: None) -> None:
        """All shards that have no mark, by `workers` of the Ray cluster at hand, or of one begun here."""
        import ray

        ray.init(ignore_reinit_error=True, log_to_driver=False)
        left = ray.data.from_items([{"shard": number} for number in self.get_incomplete_ranks()])
        left = left.repartition(left.count())  # one task each: what a killed one costs
        for _ in left.map(partial(_remote, self), concurrency=workers).iter_rows():
            advance(1)


def _remote(shards: Shards, row: dict[str, Any]) -> dict[str, Any]:
    """How Ray Data calls a map."""
    shards._run_for_rank(int(row["shard"]), SILENT)
    return row


def _step(task: Task, data: object, rank: int, world_size: int) -> None:
    """How datatrove calls a step of a pipeline."""
    task(rank)


def _begin(threads: int) -> None:
    """A worker process: its share of the cores, and no chatter between shards."""
    torch.set_num_threads(threads)
    logger.remove()
