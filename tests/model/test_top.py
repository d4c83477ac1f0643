"""The trainable top: LoRA where plain PEFT would put it, drawn as plain PEFT would draw it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn

from domainkit.model.base import Base, load_base
from domainkit.model.batch import Batch, collate
from domainkit.model.split import Trunk
from domainkit.model.top import Top, adapt, lora_config
from domainkit.model.trunk import forward
from domainkit.types import Sequence as Tokens
from tests.tiny import FAMILIES, make_base

LAYERS = 2


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module", params=[32, 4], ids=["32 bits", "4 bits"])
def base(folder: Path, request: pytest.FixtureRequest) -> Base:
    return load_base(folder, bits=request.param)


SEQUENCE = Tokens((1, 40, 41, 42, 200, 43, 7), 12, "one")


def activations(base: Base) -> Batch:
    values = forward(Trunk(base, LAYERS), [SEQUENCE])
    return collate([(SEQUENCE,)], {SEQUENCE.digest: values[0]}.__getitem__)


def shaken(base: Base) -> Top:
    """A top whose adapter is not zero."""
    made = adapt(base, {}, layers=LAYERS, rank=4)
    with torch.no_grad():
        for value in made.trainable().values():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    return made.eval()


def test_the_adapter_is_drawn_as_plain_peft_draws_it_on_the_whole_model(base: Base) -> None:
    top = adapt(base, {}, layers=LAYERS, rank=4, alpha=8, seed=5)
    torch.manual_seed(5)
    whole = load_base(base.path, bits=base.bits).model
    plain = get_peft_model(whole, lora_config(base, layers=LAYERS, rank=4, alpha=8))
    expected = {name: value for name, value in plain.named_parameters() if value.requires_grad}
    found = {name.removeprefix("model."): value for name, value in top.trainable().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_linear_map_of_the_last_layers_learns_and_nothing_else(base: Base) -> None:
    """Beside sparse experts, only attention: PEFT redirects feed-forward names to experts of every layer."""
    heads = {"triage": nn.Linear(base.width, 3)}
    trainable = adapt(base, heads, layers=LAYERS).trainable()
    adapted = {name.split(".lora_")[0].split("base_model.model.")[1] for name in trainable if "lora_" in name}
    linear = {name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)}
    last = {name for name in linear if ".layers.2." in name or ".layers.3." in name}
    sparse = "deepseek" in base.model.config.model_type
    assert adapted == {name for name in last if ".self_attn." in name or not sparse}
    assert {name for name in trainable if "lora_" not in name} == {"heads.triage.weight", "heads.triage.bias"}


def test_another_seed_draws_another_adapter(base: Base) -> None:
    one, same, other = (adapt(base, {}, layers=LAYERS, seed=seed).trainable() for seed in (1, 1, 2))
    drawn = [name for name in one if "lora_A" in name]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_an_untrained_top_is_the_base(base: Base) -> None:
    with torch.no_grad():
        whole = base.model.base_model(input_ids=torch.tensor([SEQUENCE.ids]), use_cache=False).last_hidden_state[0]
        found = adapt(base, {}, layers=LAYERS).eval().states(activations(base))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_untouched_switches_the_adapter_off_and_on_again(base: Base) -> None:
    top, batch = shaken(base), activations(base)
    with torch.no_grad():
        before = top.states(batch)
        with top.untouched():
            off = top.states(batch)
        after = top.states(batch)
        fresh = adapt(base, {}, layers=LAYERS).eval().states(batch)
    assert torch.equal(before, after)
    assert torch.equal(off, fresh)
    assert (before - off).abs().max() > 0.01
    assert all(value.requires_grad for value in top.trainable().values())
    assert len(top.trainable()) == len(adapt(base, {}, layers=LAYERS).trainable())


def test_untouched_ends_with_an_error_inside(base: Base) -> None:
    top, batch = shaken(base), activations(base)
    with torch.no_grad():
        before = top.states(batch)
        with pytest.raises(RuntimeError, match="inside"), top.untouched():
            raise RuntimeError("inside")
        assert torch.equal(top.states(batch), before)


def test_states_and_output_weight_make_the_logits(base: Base) -> None:
    top, batch = shaken(base), activations(base)
    with torch.no_grad():
        logits = top.model(inputs_embeds=batch.hidden, use_cache=False).logits[0]
        found = top.states(batch) @ top.output_weight.T
    assert not top.output_weight.requires_grad
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


def test_two_tops_over_one_base_do_not_meet(base: Base) -> None:
    batch = activations(base)
    with torch.no_grad():
        one = adapt(base, {}, layers=LAYERS).eval()
        before = one.states(batch)
        two = shaken(base)
        assert torch.equal(one.states(batch), before)
        assert not torch.equal(two.states(batch), before)


def test_the_config_names_the_base_and_the_layers(base: Base) -> None:
    config = lora_config(base, layers=1, rank=4, alpha=8)
    assert (config.r, config.lora_alpha, config.layers_to_transform) == (4, 8, [3])
    assert config.base_model_name_or_path == str(base.path)
