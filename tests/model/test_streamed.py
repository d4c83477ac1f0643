"""Layers that stay on disk: the same bits as in memory, one layer at a time, and nothing taken for what it is not."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from domainkit import memory
from domainkit.model import trunk
from domainkit.model.base import Base, load_base
from domainkit.model.ondisk import held
from domainkit.model.rows import Rows, distil, extend, second_moment, windows
from domainkit.model.split import Trunk, check_split, top
from domainkit.model.streamed import Skeleton
from domainkit.model.vocab import choose, inject
from domainkit.types import UserError
from tests.model.test_rows import TEXTS, write_glossary
from tests.model.test_trunk import corpus, run, shards
from tests.tiny import FAMILIES, make_base

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTH, KEPT, WIDTH = 5, 2, 64
IDS = torch.tensor([[1, 20, 300, 4, 5, 6, 77], [9, 8, 7, 200, 5, 0, 0]])


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied = not request.param.startswith("deepseek")  # as the real ones are
    return make_base(tmp_path_factory.mktemp(request.param), request.param, layers=DEPTH, tied=tied)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("llama"), layers=DEPTH)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, shards and blocks so small that a few documents make several of each."""
    for name, size in {"BATCH": 48, "SHARD": 64, "TOGETHER": 150}.items():
        monkeypatch.setattr(trunk, name, size)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each layer was read, by the name of its first weight."""
    counted: Counter[str] = Counter()
    real = Skeleton._read

    def read(self: Skeleton, layer: nn.Module, prefix: str, wanted: Any) -> None:
        counted[prefix] += 1
        real(self, layer, prefix, wanted)

    monkeypatch.setattr(Skeleton, "_read", read)
    yield counted


def both(folder: Path, bits: int = 32, **more: Any) -> tuple[Base, Base]:
    """The base in memory, and with its lower layers on disk."""
    return load_base(folder, bits=bits, **more), load_base(folder, bits=bits, stream="always", keep=KEPT, **more)


def real(layer: nn.Module) -> int:
    return sum(not p.is_meta for p in [*layer.parameters(), *layer.buffers()])


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.model(input_ids=IDS, use_cache=False).logits


# The same as in memory


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_the_whole_model_computes_the_same_bits(folder: Path, bits: int) -> None:
    whole, streamed = both(folder, bits)
    if bits == 8 and streamed.model.config.model_type.startswith("deepseek") and not torch.cuda.is_available():
        pytest.skip("bitsandbytes' int8 products on a CPU take no states of four dimensions, in memory neither")
    assert (whole.streamed, streamed.streamed, streamed.depth) == (0, DEPTH - KEPT, DEPTH)
    assert torch.equal(logits(streamed), logits(whole))
    assert torch.equal(logits(streamed), logits(whole))  # and again: nothing of the first time is left
    assert [real(layer) > 0 for layer in streamed.layers()] == [False] * (DEPTH - KEPT) + [True] * KEPT
    assert (streamed.facts, streamed.tied) == (whole.facts, whole.tied)


@pytest.mark.parametrize("bits", [32, 4])
def test_a_held_layer_is_the_layer_in_memory(folder: Path, bits: int) -> None:
    whole, streamed = both(folder, bits)
    with held(streamed.layers()):
        mine, theirs = streamed.model.state_dict(), whole.model.state_dict()
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert value.dtype == mine[name].dtype and torch.equal(value, mine[name]), name
        buffers = dict(streamed.model.named_buffers())
        for name, value in whole.model.named_buffers():
            assert torch.equal(value, buffers[name]), name  # rotary frequencies are in no file
        assert not any(p.requires_grad for p in streamed.model.parameters())
        assert not any(module.training for module in streamed.model.modules())
    assert streamed.model.generation_config.to_dict() == whole.model.generation_config.to_dict()
    assert streamed.model.config.to_dict() == whole.model.config.to_dict()


@pytest.mark.parametrize("depths", [(), (1, 2)])
@pytest.mark.parametrize("bits", [32, 4])
def test_the_store_holds_the_same_bytes(
    folder: Path, tmp_path: Path, small: None, bits: int, depths: tuple[int, ...]
) -> None:
    for name, base in zip(("whole", "streamed"), both(folder, bits), strict=True):
        run(base, corpus(20), tmp_path / name, layers=KEPT, depths=depths, dtype="auto")
    assert len(shards(tmp_path / "whole")) > 4
    assert shards(tmp_path / "streamed") == shards(tmp_path / "whole")  # one key, the same names, every bit


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_sharded_weights_are_read_from_where_they_are(tmp_path: Path, family: str) -> None:
    folder = make_base(tmp_path / "base", family, layers=DEPTH)
    whole = load_base(folder, bits=32)
    whole.model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > DEPTH
    assert torch.equal(logits(load_base(folder, bits=32, stream="always", keep=1)), logits(whole))


@pytest.mark.parametrize("context", [64, 2000])
def test_long_texts_and_stretched_positions_too(llama: Path, context: int) -> None:
    whole, streamed = both(llama, context=context)
    ids = torch.randint(3, 300, (1, context), generator=torch.Generator().manual_seed(0))
    (mine,) = Trunk(streamed, KEPT).each([ids])
    assert torch.equal(mine, Trunk(whole, KEPT)(ids)) and torch.equal(mine, Trunk(streamed, KEPT)(ids))
    assert streamed.positions == whole.positions


def test_a_layer_alone_keeps_its_number(tmp_path: Path) -> None:
    """The decoder masks a layer by where it stands: here every other one sees four tokens back."""
    file = make_base(tmp_path, "qwen3", layers=DEPTH) / "config.json"
    kinds = ["full_attention", "sliding_attention"] * DEPTH
    sliding = {"use_sliding_window": True, "sliding_window": 4, "layer_types": kinds[:DEPTH]}
    plain = load_base(tmp_path, bits=32)
    file.write_text(json.dumps(json.loads(file.read_text()) | sliding))
    whole, streamed = both(tmp_path)
    ids = torch.randint(3, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    mine, theirs = Trunk(streamed, KEPT).each([ids])[0], Trunk(whole, KEPT)(ids)
    assert torch.equal(mine, theirs) and not torch.allclose(theirs, Trunk(plain, KEPT)(ids), atol=1e-2)


def test_each_layer_is_read_once_for_all_that_is_on_its_way(
    llama: Path, tmp_path: Path, small: None, reads: Counter[str]
) -> None:
    base = load_base(llama, bits=4, stream="always", keep=KEPT)
    reads.clear()
    blocks = list(trunk.blocks(Trunk(base, KEPT), trunk.plan(corpus(20), torch.device("cpu"))))
    assert len(blocks) > 1 and max(map(len, blocks)) > 1
    done: list[int] = []
    run(base, corpus(20), tmp_path, layers=KEPT, progress=done.append)
    assert reads == {f"model.layers.{i}.": len(blocks) for i in range(DEPTH - KEPT)}
    assert sum(done) == sum(len(s.ids) for s in corpus(20)) and min(done) >= 0
    assert len(done) > len(blocks) * (DEPTH - KEPT)  # the bar moves within a block


@pytest.mark.parametrize("spoiled", range(DEPTH - KEPT))
def test_a_split_is_proved_on_the_way_that_is_taken_in_one_reading(
    llama: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[str], spoiled: int
) -> None:
    base = load_base(llama, bits=32, stream="always", keep=KEPT)
    reads.clear()
    check_split(base, KEPT)
    assert reads == {f"model.layers.{i}.": 1 for i in range(DEPTH - KEPT)}
    real, sound = Trunk.step, logits(base)
    monkeypatch.setattr(Trunk, "step", lambda trunk, i, states: real(trunk, i, states) * (1.1 if i == spoiled else 1))
    with pytest.raises(UserError, match="cannot be split"):
        check_split(base, KEPT)
    assert torch.equal(logits(base), sound)


# One at a time


def test_one_layer_at_a_time_and_nothing_stays(folder: Path, tmp_path: Path) -> None:
    """Counted at every module that runs; what was read is freed without the garbage collector."""
    base = load_base(folder, bits=4, stream="always", keep=KEPT)
    lower = base.layers()[: base.streamed]
    most, seen = 0, list[weakref.ref]()

    def count(module: nn.Module, given: object, out: object) -> None:
        nonlocal most
        most = max(most, sum(real(layer) > 0 for layer in lower))
        for layer in lower:
            seen.extend(weakref.ref(p) for p in layer.parameters() if not p.is_meta)
            states = (getattr(p, "quant_state", None) for p in layer.parameters())
            seen.extend(weakref.ref(state.absmax) for state in states if state is not None)

    hook = nn.modules.module.register_module_forward_hook(count)
    try:
        check_split(base, KEPT)
        run(base, corpus(3), tmp_path, layers=KEPT, depths=(1,))
        Trunk(base, KEPT, (1, 2))(IDS)
    finally:
        hook.remove()
    assert most == 1 and len(seen) > 100
    assert not any(ref() is not None for ref in seen)
    assert sum(map(real, lower)) == 0


def test_a_held_layer_is_read_once_and_dropped_at_the_end(llama: Path, reads: Counter[str]) -> None:
    base = load_base(llama, bits=4, stream="always", keep=KEPT)
    reads.clear()
    with held(base.layers()), held(base.layers()[:1]):
        logits(base), logits(base)
        assert all(real(layer) for layer in base.layers())
    assert reads == {f"model.layers.{i}.": 1 for i in range(DEPTH - KEPT)}
    assert not any(real(layer) for layer in base.layers()[: base.streamed])


def test_a_layer_that_fails_is_dropped(llama: Path) -> None:
    base = load_base(llama, bits=32, stream="always", keep=KEPT)
    with pytest.raises(RuntimeError):
        Trunk(base, KEPT).states(inputs_embeds=torch.zeros(1, 3, WIDTH + 1))
    assert not any(real(layer) for layer in base.layers()[: base.streamed])
    assert logits(base).isfinite().all()


def test_killed_half_way_at_most_a_block_is_lost(llama: Path, tmp_path: Path, small: None) -> None:
    base = load_base(llama, bits=32, stream="always", keep=KEPT)
    documents = corpus(20)
    run(base, documents, tmp_path / "whole", layers=KEPT)
    blocks = [
        sum(len(s.ids) for shard in block for batch in shard for s in batch)
        for block in trunk.blocks(Trunk(base, KEPT), trunk.plan(documents, torch.device("cpu")))
    ]
    assert len(blocks) > 2
    passed = 0

    def kill(tokens: int) -> None:
        nonlocal passed
        passed += tokens
        if passed > blocks[0] + blocks[1] // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, documents, tmp_path / "killed", layers=KEPT, progress=kill)
    done: list[int] = []
    run(base, documents, tmp_path / "killed", layers=KEPT, progress=done.append)
    assert sum(done) == sum(blocks[1:])
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")


# In memory, but later


@pytest.mark.parametrize("bits", [32, 4])
def test_a_base_that_fits_is_read_when_it_is_run(folder: Path, reads: Counter[str], bits: int) -> None:
    whole, base = load_base(folder, bits=bits), load_base(folder, bits=bits, stream="auto", keep=KEPT)
    lower, below = base.layers()[:-KEPT], Trunk(base, KEPT, (1,))
    assert (base.streamed, sum(map(real, lower)), len(reads)) == (0, 0, KEPT)
    assert torch.equal(below(IDS), Trunk(whole, KEPT, (1,))(IDS))
    mine, theirs = base.model.state_dict(), whole.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(value, mine[name]) for name, value in theirs.items())
    assert torch.equal(logits(base), logits(whole))
    assert len(reads) == KEPT + 1 and set(reads.values()) == {1}  # all lower ones at once, and they stay
    assert not any(p.requires_grad for p in base.model.parameters())


def test_more_layers_may_learn_than_were_read_at_first(llama: Path) -> None:
    base = load_base(llama, bits=32, stream="auto", keep=1)
    assert all(map(real, base.layers_of(top(base, 3))[-3:]))


def test_weights_that_are_gone_when_they_are_needed_are_missed(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path, layers=DEPTH), bits=32, stream="auto", keep=KEPT)
    file = (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="cannot load the model"):
        logits(base)
    file.rename(tmp_path / "model.safetensors")
    assert torch.equal(logits(base), logits(load_base(tmp_path, bits=32)))


# What needs more than the trunk


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_learned_alike(tmp_path: Path, tied: bool, reads: Counter[str]) -> None:
    from domainkit.glossary import Glossary

    folder = make_base(tmp_path / "base", layers=DEPTH, tied=tied)
    glossary = Glossary.read(write_glossary(tmp_path / "desk.tsv"))
    learned = []
    for base in both(folder):
        vocabulary = choose(glossary, base.tokenizer, TEXTS, rows=len(base.embedding.weight))
        tokenizer = inject(base.tokenizer, vocabulary)
        found = windows(TEXTS, base, tokenizer, vocabulary.first, tokens=1000)
        moment = second_moment(base, found)
        start = torch.randn(len(vocabulary.forms), WIDTH, generator=torch.Generator().manual_seed(0)) / 8
        reads.clear()
        rows = distil(base, vocabulary.first, start, found, seed=0, depth=2, moment=moment if tied else None)
        assert set(reads.values()) <= {1}  # held throughout
        grown = extend(base, tokenizer, vocabulary.first, Rows(rows, None if tied else rows))
        assert grown.streamed == base.streamed
        learned.append((moment, rows, logits(grown)))
    for whole, streamed in zip(*learned, strict=True):
        assert torch.equal(whole, streamed)


def test_layers_that_learn_must_be_in_memory(llama: Path) -> None:
    base = load_base(llama, bits=32, stream="always", keep=1)
    with pytest.raises(UserError, match=r"2 layers were to learn, but only the last 1 are in memory.*keep=2"):
        top(base, 2)


# When, and what is refused


@pytest.mark.parametrize(("bits", "bytes_"), [(32, 4.0), (16, 2.0), (4, 0.5)])
def test_auto_streams_what_would_take_half_of_the_memory(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bits: int, bytes_: float
) -> None:
    whole = load_base(llama, bits=32)
    linear = sum(p.numel() for layer in whole.layers() for p in layer.parameters() if p.ndim == 2)
    others = sum(p.numel() for p in whole.model.parameters()) - linear
    needed = int(linear * bytes_ + others * (2 if bits == 16 else 4))
    for free, streams in ((2 * needed, 0), (2 * needed - 2, DEPTH - KEPT)):
        monkeypatch.setattr(memory, "free", lambda free=free: free)
        assert load_base(llama, bits=bits, stream="auto", keep=KEPT).streamed == streams
        assert (f"{DEPTH - KEPT} of {DEPTH} layers stay on disk" in capsys.readouterr().err) == bool(streams)
        assert load_base(llama, bits=bits, keep=KEPT).streamed == 0


@pytest.mark.parametrize(
    ("family", "weight", "told"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight",
         r"1 weights are missing, e.g. model.layers.1.mlp.up_proj.weight"),
        ("deepseek_v3", "model.layers.2.mlp.experts.1.up_proj.weight", r"model.layers.2.mlp.experts"),
    ],
)  # fmt: skip
def test_a_missing_weight_is_found_before_anything_runs(tmp_path: Path, family: str, weight: str, told: str) -> None:
    file = make_base(tmp_path, family, layers=DEPTH) / "model.safetensors"
    weights = load_file(file)
    del weights[weight]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=told):
        load_base(tmp_path, stream="always")


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    file = make_base(tmp_path, layers=DEPTH) / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(96, WIDTH)
    save_file(weights, file, metadata={"format": "pt"})
    for bits in (32, 4):
        with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight is \(96, 64\), config.json says \(128, 64\)"):
            load_base(tmp_path, bits=bits, stream="always")


def test_weights_that_go_while_it_runs_are_missed(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path, layers=DEPTH), bits=32, stream="always", keep=KEPT)
    before = logits(base)
    file, kept = tmp_path / "model.safetensors", tmp_path / "kept"
    file.rename(kept)  # never cut in place: what is loaded may be mapped from it
    with pytest.raises(UserError, match="cannot load the model"):
        logits(base)
    whole = kept.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot load the model"):
        logits(base)
    kept.rename(file)
    assert torch.equal(logits(base), before)


def test_unknown_ways_to_stream_are_refused(llama: Path) -> None:
    with pytest.raises(UserError, match=r"unknown way to stream 'yes'; instead: one of auto, always, never"):
        load_base(llama, stream="yes")
