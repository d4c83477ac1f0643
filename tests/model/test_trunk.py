"""The trunk runs once: right activations, nothing computed twice, nothing lost by a kill."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainkit.model import trunk
from domainkit.model.base import Base, load_base
from domainkit.model.split import Trunk
from domainkit.model.store import Store
from domainkit.types import Sequence as Tokens
from domainkit.types import UserError
from tests.tiny import FAMILIES, make_base

LAYERS, DEPTH, WIDTH = 2, 4, 64
CPU = torch.device("cpu")
ROOM = 1.0  # GB


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and shards so small that a few documents make several of each."""
    monkeypatch.setattr(trunk, "BATCH", 48)
    monkeypatch.setattr(trunk, "SHARD", 64)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, bits=32)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the sequences that really went through the trunk, in order."""
    seen: list[str] = []
    forward = trunk.forward

    def recording(model: Trunk, batch: Sequence[Tokens]) -> list[np.ndarray]:
        seen.extend(s.digest for s in batch)
        return forward(model, batch)

    monkeypatch.setattr(trunk, "forward", recording)
    return seen


def tokens(seed: int, length: int) -> Tokens:
    ids = np.random.default_rng(seed).integers(3, 300, length).tolist()
    return Tokens((1, *ids[1:]), bytes=3 * length, group=f"document {seed}")


def corpus(count: int = 12, first: int = 0) -> list[Tokens]:
    return [tokens(first + i, 4 + (7 * i) % 29) for i in range(count)]


def run(base: Base, sequences: Sequence[Tokens], root: Path, **more: Any) -> Store:
    settings: dict[str, Any] = {"layers": LAYERS, "disk_gb": ROOM, "dtype": "float32"} | more
    return trunk.run(base, sequences=sequences, root=root, **settings)


def shards(root: Path) -> dict[str, bytes]:
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_the_hidden_states_of_the_whole_model(
    tmp_path: Path, family: str, bits: int, layers: int
) -> None:
    base = load_base(make_base(tmp_path / family, family, layers=DEPTH, width=WIDTH), bits=bits)
    sequences = corpus(5)
    store = run(base, sequences, tmp_path / "store", layers=layers)
    for s in sequences:
        states = base.model(input_ids=torch.tensor([s.ids]), output_hidden_states=True, use_cache=False).hidden_states
        exact = states[DEPTH - layers][0].numpy()
        np.testing.assert_allclose(store.get(s.digest), exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_a_second_run_calls_the_trunk_not_once(base: Base, tmp_path: Path) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = base.layers()[0].register_forward_hook(count)
    try:
        first = run(base, corpus(), tmp_path, dtype="auto")
        assert calls > 0
        before, calls = shards(tmp_path), 0
        done: list[int] = []
        again = run(base, corpus(), tmp_path, dtype="auto", progress=done.append)
        assert calls == 0 and sum(done) == 0
    finally:
        hook.remove()
    assert shards(tmp_path) == before
    assert again.places == first.places and again.dtype == first.dtype


def test_a_changed_document_costs_exactly_its_own_sequences(
    base: Base, tmp_path: Path, small: None, computed: list[str]
) -> None:
    documents = corpus()
    store = run(base, documents, tmp_path)
    before = {s.digest: store.get(s.digest).copy() for s in documents}
    computed.clear()
    changed = [*documents[:5], tokens(1000, 18), tokens(1001, 9), *documents[6:]]
    done: list[int] = []
    store = run(base, changed, tmp_path, progress=done.append)
    assert sorted(computed) == sorted(s.digest for s in (changed[5], changed[6]))
    assert sum(done) == 27
    for s in documents[:5] + documents[6:]:
        np.testing.assert_array_equal(store.get(s.digest), before[s.digest])


def test_the_same_text_twice_is_computed_once(base: Base, tmp_path: Path, computed: list[str]) -> None:
    twins = [Tokens(s.ids, s.bytes, group=f"other {i}") for i, s in enumerate(corpus())]
    done: list[int] = []
    run(base, [*corpus(), *twins], tmp_path, progress=done.append)
    assert sorted(computed) == sorted(s.digest for s in twins)
    assert sum(done) == sum(len(s.ids) for s in twins)


def test_whatever_changes_the_activations_changes_the_folder(base: Base, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "other", seed=1)
    runs = {
        "as it is": run(base, corpus(), tmp_path / "s"),
        "other weights": run(load_base(folder, bits=32), corpus(), tmp_path / "s"),
        "four bits": run(load_base(base.path, bits=4), corpus(), tmp_path / "s"),
        "16 bits": run(load_base(base.path, bits=16), corpus(), tmp_path / "s"),
        "eager attention": run(load_base(base.path, bits=32, attention="eager"), corpus(), tmp_path / "s"),
        "one layer": run(base, corpus(), tmp_path / "s", layers=1),
        "half precision on disk": run(base, corpus(), tmp_path / "s", dtype="float16"),
    }
    assert len({store.folder for store in runs.values()}) == len(runs)
    assert all(len(store.places) == 12 for store in runs.values())
    manifest = json.loads((runs["four bits"].folder / "manifest.json").read_text())
    assert manifest["of"]["bits"] == 4 and manifest["of"]["base"] == base.sha256
    moved = load_base(base.path, bits=32)  # the same base loaded again is the same base
    assert run(moved, corpus(), tmp_path / "s").folder == runs["as it is"].folder


@pytest.mark.parametrize("at", [1, 2, 5])
def test_killed_half_way_and_run_again_gives_the_same_bytes(base: Base, tmp_path: Path, small: None, at: int) -> None:
    documents = corpus(20)
    run(base, documents, tmp_path / "whole")
    calls = 0

    def kill(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, documents, tmp_path / "killed", progress=kill)
    kept = [name for name in shards(tmp_path / "killed") if name.endswith(".safetensors")]
    done: list[int] = []
    run(base, documents, tmp_path / "killed", progress=done.append)
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")  # names, indices and every bit
    sizes = [[sum(len(s.ids) for s in batch) for batch in shard] for shard in trunk.plan(documents, CPU)]
    assert len(sizes) > 3
    assert sum(len(shard) for shard in sizes[: len(kept) + 1]) >= at  # only the shard it died in was lost
    assert sum(done) == sum(map(sum, sizes[len(kept) :]))  # and what follows it


def test_processes_that_share_the_work_write_what_one_writes(
    base: Base, tmp_path: Path, small: None, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads in the place of torchrun's processes: neither computes or sweeps away what the other does."""
    documents, meet = corpus(20), Barrier(2)
    run(base, documents, tmp_path / "whole")
    trunk.open_store(base, LAYERS, documents, tmp_path / "shared", dtype="float32")
    computed.clear()
    monkeypatch.setattr("domainkit.ranks.wait", meet.wait)
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda which: run(base, documents, tmp_path / "shared", share=(which, 2)), range(2)))
    assert shards(tmp_path / "shared") == shards(tmp_path / "whole")
    assert sorted(computed) == sorted({s.digest for s in documents})
    assert all(s.digest in store for store in stores for s in documents)


def test_a_process_computes_its_share_whatever_others_have_written(
    base: Base, tmp_path: Path, small: None, computed: list[str]
) -> None:
    """Had they looked at what is missing at different moments, a shard could fall to nobody."""
    documents = corpus(20)
    run(base, documents, tmp_path / "first", share=(1, 2))
    own = set(computed)
    run(base, documents, tmp_path / "last", share=(0, 2))
    computed.clear()
    store = run(base, documents, tmp_path / "last", share=(1, 2))
    assert set(computed) == own and all(s.digest in store for s in documents)


def test_the_order_of_the_documents_changes_nothing(base: Base, tmp_path: Path, small: None) -> None:
    run(base, corpus(), tmp_path / "a")
    run(base, corpus()[::-1], tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(8, 100), st.integers(8, 100))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_plan_holds_everything_once_in_batches_that_fit(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], batch: int, shard: int
) -> None:
    monkeypatch.setattr(trunk, "BATCH", batch)
    monkeypatch.setattr(trunk, "SHARD", shard)
    sequences = [tokens(i, length) for i, length in enumerate(lengths)]
    plan = trunk.plan(sequences, CPU)
    flat = [s.digest for part in plan for one in part for s in one]
    assert sorted(flat) == sorted({s.digest for s in sequences})
    for part in plan:
        sizes = [sum(len(s.ids) for s in one) for one in part]
        assert sum(sizes[:-1]) < shard  # a shard ends with the batch that fills it
        assert all(len(one) == 1 or max(len(s.ids) for s in one) * len(one) <= batch for one in part)


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_neither_neighbours_nor_padding_change_a_sequence(tmp_path: Path, family: str, bits: int) -> None:
    base = load_base(make_base(tmp_path, family, layers=DEPTH, width=WIDTH), bits=bits)
    model = Trunk(base, LAYERS)

    @given(st.lists(st.integers(1, 48), min_size=1, max_size=7), st.integers(0, 10_000))
    @settings(max_examples=15)
    def alone_or_together(lengths: list[int], seed: int) -> None:
        batch = [tokens(seed + i, length) for i, length in enumerate(lengths)]
        for s, found in zip(batch, trunk.forward(model, batch), strict=True):
            (alone,) = trunk.forward(model, [s])
            assert found.shape == (len(s.ids), WIDTH)
            np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())

    alone_or_together()


def test_auto_takes_float16_where_it_changes_nothing(base: Base, tmp_path: Path) -> None:
    auto, exact = run(base, corpus(), tmp_path, dtype="auto"), run(base, corpus(), tmp_path)
    assert auto.dtype == "float16" and exact.dtype == "float32"
    for s in corpus():
        np.testing.assert_array_equal(auto.get(s.digest), exact.get(s.digest).astype(np.float16))
    why = json.loads((auto.folder / "manifest.json").read_text())["why"]
    number = float(why.removeprefix("float16 changes the loss by ").split(" relative")[0])
    assert 0 < number < 1e-4
    assert json.loads((exact.folder / "manifest.json").read_text())["why"] == "as set"


def test_auto_takes_float32_when_float16_overflows(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path / "base", tied=False), bits=32)
    with torch.no_grad():
        dict(base.model.named_parameters())["model.embed_tokens.weight"].mul_(1e6)  # float16 ends at 65,504
    with warnings.catch_warnings(action="error"):
        store = run(base, corpus(), tmp_path / "store", dtype="auto")
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert store.dtype == manifest["dtype"] == "float32"
    assert "nan relative" in manifest["why"]
    biggest = max(float(np.abs(store.get(s.digest)).max()) for s in corpus())
    assert np.isfinite(biggest) and biggest > 65_504


def test_an_overflow_the_sample_did_not_show_stays_exact(tmp_path: Path) -> None:
    """The choice was float16, then comes a document with a token beyond its range."""
    base = load_base(make_base(tmp_path / "base", tied=False), bits=32)
    with torch.no_grad():
        dict(base.model.named_parameters())["model.embed_tokens.weight"][299].mul_(1e6)
    usual = [s for s in corpus() if 299 not in s.ids]
    assert run(base, usual, tmp_path / "auto", dtype="auto").dtype == "float16"
    late = Tokens((1, 5, 299, 7), 4, "late")
    stored = run(base, [*usual, late], tmp_path / "auto", dtype="auto").get(late.digest)
    exact = run(base, [*usual, late], tmp_path / "exact").get(late.digest)
    assert np.abs(exact).max() > 65_504
    np.testing.assert_allclose(stored, exact, rtol=1e-4, atol=1e-5)


def test_auto_takes_float32_when_the_loss_moves_too_much(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, why = trunk.choose_dtype(base, LAYERS, corpus())
    measured = float(why.split(" by ")[1].split(" ")[0])
    monkeypatch.setattr(trunk, "TOLERANCE", measured / 10)
    assert dtype == "float16"
    assert trunk.choose_dtype(base, LAYERS, corpus()) == ("float32", why)


def test_no_text_of_the_sample_that_auto_measures_is_padded_to_the_longest(base: Base, small: None) -> None:
    passed: list[int] = []
    hook = base.layers()[0].register_forward_hook(lambda layer, given, out: passed.append(given[0].shape[:2].numel()))
    try:
        trunk.choose_dtype(base, LAYERS, [tokens(0, 40), *(tokens(i, 5) for i in range(1, 30))])
    finally:
        hook.remove()
    assert sum(passed) == 40 + 29 * 5 and max(passed) <= 48


def test_a_budget_too_small_is_refused_before_anything_is_computed(
    base: Base, tmp_path: Path, computed: list[str]
) -> None:
    needed = sum(len(s.ids) for s in corpus()) * WIDTH * 4
    with pytest.raises(UserError, match=r"the budget is 0\.00 GB.*disk_gb"):
        run(base, corpus(), tmp_path, disk_gb=(needed - 1) / 1e9)
    assert computed == []
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_within_the_budget_the_oldest_activations_make_room(base: Base, tmp_path: Path, small: None) -> None:
    one = sum(len(s.ids) for s in corpus()) * WIDTH * 4
    budget = 1.6 * one / 1e9
    run(base, corpus(), tmp_path, disk_gb=budget)
    store = run(base, corpus(first=100), tmp_path, disk_gb=budget)
    used = sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
    assert used <= 1.05 * budget * 1e9  # the header of each shard comes on top
    assert all(s.digest in store for s in corpus(first=100))
    again = run(base, corpus(), tmp_path / "fresh")
    store = run(base, corpus(), tmp_path, disk_gb=budget)  # what was deleted is computed anew, and equal
    for s in corpus():
        np.testing.assert_allclose(store.get(s.digest), again.get(s.digest), rtol=1e-5, atol=1e-5)


def test_depths_stand_before_the_output_and_have_a_store_of_their_own(base: Base, tmp_path: Path) -> None:
    found = [tokens(1, 20), tokens(2, 30)]
    deep = trunk.run(base, LAYERS, found, tmp_path, disk_gb=ROOM, dtype="float32", depths=(1,))
    flat = trunk.run(base, LAYERS, found, tmp_path, disk_gb=ROOM, dtype="float32")
    assert deep.folder != flat.folder
    for s in found:
        assert deep.get(s.digest).shape == (len(s.ids), 2 * WIDTH)
        np.testing.assert_array_equal(deep.get(s.digest)[:, WIDTH:], flat.get(s.digest))
