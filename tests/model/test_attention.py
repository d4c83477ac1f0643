"""`attention="lsh"` by name: every family gives the logits of dense attention where LSH reads all keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from domainkit.model import attention
from domainkit.model.base import load_base
from domainkit.nets import lsh
from tests.tiny import FAMILIES, make_base, small_lsh

TOKENS = 88  # so few that LSH reads all of them
WINDOWED = "mistral"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shape of the keys of each call of LSH. Three tokens are long here, and blocks and segments small."""
    monkeypatch.setattr(attention, "_short", lambda tokens, device: tokens < 3)
    small_lsh(monkeypatch)
    seen: list[torch.Size] = []

    def spy(q: Tensor, k: Tensor, *args: Any, **more: Any) -> Tensor:
        seen.append(k.shape)
        return lsh.attend(q, k, *args, **more)

    monkeypatch.setattr(attention, "attend", spy)
    return seen


@pytest.fixture(scope="module", params=[*FAMILIES, WINDOWED])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    if request.param == WINDOWED:
        config = AutoConfig.for_model(
            WINDOWED, vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=24, initializer_range=0.125,
        )  # fmt: skip
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    folder = make_base(tmp_path_factory.mktemp(request.param), request.param, layers=2)
    return load_base(folder, bits=32).model


@pytest.fixture
def both(model: PreTrainedModel) -> Iterator[Any]:
    """Logits of the model by dense attention and by LSH."""

    def run(**given: Any) -> tuple[Tensor, Tensor]:
        found = []
        for name in ("sdpa", "lsh"):
            model.set_attn_implementation(name)
            with torch.no_grad():
                found.append(model(**given, use_cache=False).logits)
        return found[0], found[1]

    yield run
    model.set_attn_implementation("sdpa")


def ids(rows: int = 1) -> Tensor:
    return torch.randint(3, 290, (rows, TOKENS), generator=torch.Generator().manual_seed(0))


def used(model: PreTrainedModel, calls: list[torch.Size]) -> bool:
    """Whether LSH was called in every layer, or in none if all have a window."""
    return len(calls) == (0 if model.config.model_type == WINDOWED else model.config.num_hidden_layers)


def test_logits_are_those_of_dense_attention(model: PreTrainedModel, both: Any, calls: list[torch.Size]) -> None:
    dense, found = both(input_ids=ids())
    torch.testing.assert_close(found, dense, atol=1e-4, rtol=1e-4)
    assert used(model, calls)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_read(model: PreTrainedModel, both: Any, calls: list[torch.Size], side: str) -> None:
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, slice(0, 40) if side == "left" else slice(TOKENS - 40, None)] = 0
    dense, found = both(input_ids=ids(2), attention_mask=mask)
    torch.testing.assert_close(found[mask.bool()], dense[mask.bool()], atol=1e-4, rtol=1e-4)
    assert used(model, calls)


def test_packed_documents_do_not_see_each_other(model: PreTrainedModel, both: Any, calls: list[torch.Size]) -> None:
    positions = torch.cat([torch.arange(50), torch.arange(1), torch.arange(TOKENS - 51)])[None]
    dense, found = both(input_ids=ids(), position_ids=positions)
    torch.testing.assert_close(found, dense, atol=1e-4, rtol=1e-4)
    assert used(model, calls)


@pytest.mark.parametrize("padding", [0, 9])
def test_a_cache_filled_in_parts(model: PreTrainedModel, both: Any, padding: int) -> None:
    mask = torch.ones(1, TOKENS, dtype=torch.long)
    mask[:, :padding] = 0
    dense, _ = both(input_ids=ids(), attention_mask=mask)
    model.set_attn_implementation("lsh")
    cache, found, end = DynamicCache(config=model.config), [], 0
    with torch.no_grad():
        for part in ids().split([70, 10, 1, 1, 6], 1):
            end += part.shape[1]
            given = {"input_ids": part, "attention_mask": mask[:, :end]}
            found.append(model(**given, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(found, 1)[:, padding:], dense[:, padding:], atol=1e-4, rtol=1e-4)


def test_a_text_that_grows_is_not_hashed_anew(
    model: PreTrainedModel, both: Any, calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    split, seen = lsh.split, list[int]()
    monkeypatch.setattr(lsh, "split", lambda of, cell: (seen.append(of.shape[0]), split(of, cell))[1])
    model.set_attn_implementation("lsh")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for part in ids().split([TOKENS - 10, *[1] * 10], 1):
            model(input_ids=part, past_key_values=cache, use_cache=True)
    layers = 0 if model.config.model_type == WINDOWED else model.config.num_hidden_layers
    assert len(calls) == 11 * layers
    assert sum(seen) == sum(of[1] for of in calls[:layers]) * (10 + 5 + 1)  # segments of 8, 16 and 64 tokens


def test_a_text_that_does_not_grow_leaves_no_index(
    model: PreTrainedModel, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer would keep one of a long text."""
    kept: dict[torch.nn.Module, lsh.Index] = {}
    monkeypatch.setattr(attention, "_indexes", kept)
    both(input_ids=ids())
    assert not kept


def test_what_is_not_causal_is_dense(model: PreTrainedModel, both: Any, calls: list[torch.Size]) -> None:
    seen = torch.zeros(1, 1, TOKENS, TOKENS)
    dense, found = both(inputs_embeds=model.get_input_embeddings()(ids()), attention_mask=seen)
    torch.testing.assert_close(found, dense)
    assert not calls


def test_short_inputs_take_the_dense_kernel(
    both: Any, calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_short", lambda tokens, device: tokens <= TOKENS)
    dense, found = both(input_ids=ids())
    assert torch.equal(found, dense)
    assert not calls


def test_no_mask_of_queries_by_keys() -> None:
    assert attention._mask(1, 100_000, 100_000) is None
    padding = torch.ones(1, 100_000, dtype=torch.bool)
    padding[0, 0] = False
    found = attention._mask(1, 100_000, 100_000, attention_mask=padding)
    assert found is not None and found.shape == (1, 100_000)


def test_dropout_is_refused(model: PreTrainedModel) -> None:
    if model.config.model_type == WINDOWED:
        pytest.skip("its layers have a window")
    q, k = torch.zeros(1, 4, 9, 16), torch.zeros(1, 2, 9, 16)
    with pytest.raises(ValueError, match="no dropout: set attention_dropout to 0"):
        attention._attention(torch.nn.Module(), q, k, k, None, dropout=0.1)
