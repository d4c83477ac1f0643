"""The cut: trunk and top together are the whole model, and cutting or training it never touches the base."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel

from domainkit.model import split
from domainkit.model.base import Base, load_base
from domainkit.model.split import Trunk, check_layers, check_split, top
from domainkit.model.top import Top, adapt
from domainkit.types import UserError
from tests.tiny import FAMILIES, make_base

DEPTH, WIDTH = 4, 64


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[(family, bits) for family in FAMILIES for bits in (32, 4)], ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    family, bits = request.param
    return load_base(make_base(tmp_path_factory.mktemp(family), family, layers=DEPTH, width=WIDTH), bits=bits)


def some_ids(base: Base, rows: int = 2, tokens: int = 21) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, base.model.config.vocab_size, (rows, tokens), generator=generator)


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_top_of_trunk_is_the_whole_model(base: Base, layers: int) -> None:
    ids = some_ids(base)
    whole = base.model(input_ids=ids, use_cache=False).logits
    hidden = Trunk(base, layers)(ids)
    assert hidden.shape == (*ids.shape, WIDTH)
    logits = top(base, layers)(inputs_embeds=hidden, use_cache=False).logits
    torch.testing.assert_close(logits, whole, rtol=0, atol=0)  # the same operations in the same order
    check_split(base, layers)


@torch.no_grad()
def test_the_trunk_is_the_hidden_state_at_its_depth_and_the_top_really_computes(base: Base) -> None:
    ids = some_ids(base)
    states = base.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    for layers in (1, 2):
        torch.testing.assert_close(Trunk(base, layers)(ids), states[DEPTH - layers], rtol=0, atol=0)
    wrong = top(base, 2)(inputs_embeds=states[1], use_cache=False).logits
    assert (wrong - base.model(input_ids=ids, use_cache=False).logits).abs().max() > 1e-2


@torch.no_grad()
def test_depths_are_the_hidden_states_there_and_leave_the_base_alone(base: Base) -> None:
    ids = some_ids(base)
    states = base.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    hooks = [len(layer._forward_hooks) for layer in base.layers()]
    trunk = Trunk(base, 1, depths=(1, 2))
    for _ in range(2):  # nothing of the first pass stays for the second
        torch.testing.assert_close(trunk(ids), torch.cat([states[1], states[2], states[3]], -1), rtol=0, atol=0)
    assert [len(layer._forward_hooks) for layer in base.layers()] == hooks


@pytest.mark.parametrize("depths", [(0,), (2,), (3,), (1, 1), (2, 1)])
def test_depths_that_the_trunk_does_not_have_are_refused(tiny_base: Path, depths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"no depths .*; instead: 1 to 1"):
        Trunk(load_base(tiny_base, bits=32), 2, depths=depths)


def test_the_parts_have_the_names_of_the_whole(base: Base) -> None:
    """An adapter trained on the top then loads onto the whole model."""
    whole = dict(base.model.named_parameters())
    part = dict(top(base, 2).named_parameters())
    own = {name for name in part if name in whole and part[name] is not whole[name]}
    assert part.keys() < whole.keys()
    assert own == {name for name in whole if ".layers.2." in name or ".layers.3." in name}


def test_the_base_is_untouched_by_adapting_and_training_the_top(base: Base) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    modules = {name: id(module) for name, module in base.model.named_modules()}
    ids = some_ids(base)
    with torch.no_grad():
        logits = base.model(input_ids=ids, use_cache=False).logits
        hidden = Trunk(base, 2)(ids)
    made = adapt(base, {}, layers=2)
    optimizer = torch.optim.AdamW(made.trainable().values(), lr=0.05)
    for _ in range(3):
        made.model(inputs_embeds=hidden, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        moved = made.model(inputs_embeds=hidden).logits
        torch.testing.assert_close(base.model(input_ids=ids, use_cache=False).logits, logits, rtol=0, atol=0)
    assert (moved - logits).abs().max() > 1e-2  # so training did do something
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: id(module) for name, module in base.model.named_modules()} == modules
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("layers", [0, -1, 4, 5])
def test_layers_must_leave_a_trunk(tmp_path: Path, layers: int) -> None:
    base = load_base(make_base(tmp_path, layers=DEPTH), bits=32)
    for cut in (check_layers, Trunk, top):
        with pytest.raises(UserError, match=rf"last {layers} layers of 4.*1 to 3"):
            cut(base, layers)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gpt_neox"])
def test_another_family_is_split_rightly_or_refused(tmp_path: Path, family: str) -> None:
    """Gemma scales its embeddings, Gemma 2 alternates two kinds of attention, GPT-NeoX has other names."""
    base = foreign(tmp_path, family)
    assert split_is_right(base) == accepted(base)


def test_a_decoder_that_adds_to_inputs_embeds_is_refused(tmp_path: Path) -> None:
    """GPT-2 adds its position vectors to whatever it is fed, so the top would add them twice."""
    base = foreign(tmp_path, "gpt2")
    assert not split_is_right(base)
    assert not accepted(base)


def test_a_decoder_that_works_between_its_layers_is_refused(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path, layers=DEPTH), bits=32)
    backbone: Any = base.model.base_model
    backbone.__class__ = ScalingLlama
    with pytest.raises(UserError, match=r"cannot be split at its last 2 layers \(logits differ by"):
        check_split(base, 2)
    backbone.__class__ = LlamaModel
    check_split(base, 2)


def test_a_single_wrong_weight_in_the_top_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard looks at numbers: a top that differs in one layer norm does not pass."""
    base = load_base(make_base(tmp_path, layers=DEPTH), bits=32)
    deepcopy = copy.deepcopy

    def spoiled(module: Any, *rest: Any) -> Any:
        clone = deepcopy(module, *rest)
        with torch.no_grad():
            clone.input_layernorm.weight.mul_(1.1)
        return clone

    monkeypatch.setattr("domainkit.model.split.copy.deepcopy", spoiled)
    with pytest.raises(UserError, match="cannot be split"):
        check_split(base, 2)


class ScalingLlama(LlamaModel):
    """A Llama that scales whatever enters its first layer."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        return super().forward(inputs_embeds=inputs_embeds * WIDTH**0.5, **kwargs)


SHAPES: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16, "num_key_value_heads": 2},
    "gemma2": {"head_dim": 16, "num_key_value_heads": 2, "sliding_window": 4},
    "gpt_neox": {},
    "gpt2": {},
}


def foreign(folder: Path, family: str) -> Base:
    """A base whose model is of a family outside the contract, with random weights."""
    base = load_base(make_base(folder, layers=DEPTH), bits=32)
    settings = {
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    } | SHAPES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    return replace(base, model=model.eval().requires_grad_(False))


@torch.no_grad()
def split_is_right(base: Base) -> bool:
    ids = some_ids(base) % 300
    whole = base.model(input_ids=ids, use_cache=False).logits
    parts = top(base, 2)(inputs_embeds=Trunk(base, 2)(ids), use_cache=False).logits
    return torch.allclose(parts, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def accepted(base: Base) -> bool:
    try:
        check_split(base, 2)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_goes_through_the_feed_forward_parts_in_blocks(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(make_base(tmp_path / family, family, layers=3, width=WIDTH), bits=32)
    ids = some_ids(base, tokens=60)
    widest = list[int]()

    def passed(block: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits, and the gradients of an adapter."""
        monkeypatch.setattr(split, "BLOCK", block)
        widest.clear()
        adapted = adapt(base, {}, layers=2, rank=4)
        hooks = [m.register_forward_pre_hook(lambda m, given: widest.append(given[0].shape[1])) for m in seen(adapted)]
        hidden = Trunk(base, 2)(ids)
        logits = adapted.model(inputs_embeds=hidden, use_cache=False).logits
        logits.logsumexp(-1).sum().backward()
        for hook in hooks:
            hook.remove()
        return logits, [p.grad for p in adapted.trainable().values() if p.grad is not None]

    def seen(adapted: Top) -> list[torch.nn.Module]:
        """What the widest states inside a dense feed-forward part leave or enter."""
        modules = [*base.layers()[0].modules(), *adapted.model.modules()]
        return [m.down_proj for m in modules if isinstance(getattr(m, "down_proj", None), torch.nn.Module)]

    whole, gradients = passed(60)
    assert max(widest) == 60
    torch.testing.assert_close(passed(16), (whole, gradients), rtol=1e-4, atol=1e-5)
    assert max(widest) == 16
    assert gradients
