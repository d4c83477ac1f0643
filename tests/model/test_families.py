"""One contract, every family of decoders."""

from __future__ import annotations

import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file

from domainkit.model.base import Base, load_base
from domainkit.model.folder import fingerprint
from tests.tiny import FAMILIES, make_base

LAYERS, WIDTH = 3, 64


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied = not request.param.startswith("deepseek")  # as the real ones are
    return make_base(tmp_path_factory.mktemp(request.param), request.param, layers=LAYERS, width=WIDTH, tied=tied)


@pytest.fixture(scope="module", params=(32, 4))
def base(folder: Path, request: pytest.FixtureRequest) -> Base:
    return load_base(folder, bits=request.param)


def test_is_a_frozen_decoder_of_the_saved_shape(base: Base, folder: Path) -> None:
    assert (base.depth, base.width, base.path, base.name) == (LAYERS, WIDTH, folder, str(folder))
    assert len(base.layers()) == LAYERS
    assert base.layers()[0] is next(iter(base.backbone.layers))
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.norm.weight.shape == (WIDTH,)


def test_head_turns_normed_states_into_the_logits(base: Base) -> None:
    assert base.head.weight.shape == (len(base.tokenizer), WIDTH)
    assert base.head.weight.dtype == torch.float32  # never quantized: the loss reads it
    ids = torch.tensor([base.tokenizer.encode("The bank raised 25 basis points. 逾期贷款")])
    with torch.no_grad():
        out = base.model(input_ids=ids, output_hidden_states=True)
        again = base.head(base.norm(_last_layer(base, ids)))
    assert torch.isfinite(out.logits).all()
    assert torch.allclose(out.logits, again, atol=1e-5)


def test_is_causal(base: Base) -> None:
    ids = torch.tensor([base.tokenizer.encode("The bank raised its margin.")])
    other = ids.clone()
    other[0, -1] = 5
    with torch.no_grad():
        a, b = base.model(input_ids=ids).logits, base.model(input_ids=other).logits
    assert torch.allclose(a[:, :-1], b[:, :-1], atol=1e-5)
    assert not torch.allclose(a[:, -1], b[:, -1], atol=1e-3)


def test_prefix_is_bos_else_eos(base: Base) -> None:
    qwen = base.model.config.model_type.startswith("qwen")
    assert base.tokenizer.convert_ids_to_tokens(base.prefix_id) == ("<|im_end|>" if qwen else "<|im_start|>")


def test_four_bits_quantize_the_layers_and_nothing_else(folder: Path) -> None:
    base = load_base(folder, bits=4)
    names = {n for n, m in base.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    linear = {n for n, m in load_base(folder, bits=32).model.named_modules() if type(m) is torch.nn.Linear}
    assert names == linear - {"lm_head"}
    state = base.layers()[1].self_attn.o_proj.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    if "deepseek" in base.model.config.model_type:  # the documented exception
        assert base.layers()[1].mlp.experts.gate_up_proj.dtype == torch.float32
        assert isinstance(base.layers()[0].mlp.gate_proj, bnb.nn.Linear4bit)


@pytest.mark.usefixtures("exact_products")
def test_four_bits_compute_exactly_with_the_dequantized_weights(folder: Path) -> None:
    exact, short = load_base(folder, bits=32), load_base(folder, bits=4)
    ids = torch.tensor([exact.tokenizer.encode("The bank raised 25 basis points.")])
    with torch.no_grad():
        before = exact.model(input_ids=ids).logits
        for name, module in short.model.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                exact.model.get_submodule(name).weight.copy_(weight)
        after, quantized = exact.model(input_ids=ids).logits, short.model(input_ids=ids).logits
    assert torch.allclose(after, quantized, atol=1e-5)
    assert not torch.allclose(before, quantized, atol=1e-2)


def test_attention_implementations_agree(folder: Path) -> None:
    ids = torch.tensor([[3, 50, 77, 4, 9, 200]])
    with torch.no_grad():
        a, b = (load_base(folder, bits=32, attention=way).model(input_ids=ids).logits for way in ("sdpa", "eager"))
    assert torch.allclose(a, b, atol=1e-4)


def test_gradients_flow_through_the_frozen_layers(base: Base) -> None:
    hidden = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    base.model(inputs_embeds=hidden, use_cache=False).logits.square().mean().backward()
    assert torch.isfinite(hidden.grad).all()
    assert float(hidden.grad[:, 0].abs().max()) > 0  # the first token reaches every later one


def test_fingerprint_follows_contents_not_place(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    (moved / "notes.md").write_text("not part of the base")
    same = load_base(moved, bits=32)
    assert same.sha256 == fingerprint(folder) == load_base(folder, bits=4).sha256
    file = moved / "model.safetensors"
    for name in list(load_file(file)):
        weights = {key: value.clone() for key, value in load_file(file).items()}
        weights[name].view(-1)[0] += 1e-3
        save_file(weights, file, metadata={"format": "pt"})
        assert fingerprint(moved) != same.sha256, name


def _last_layer(base: Base, ids: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = base.layers()[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    base.model(input_ids=ids)
    hook.remove()
    return seen[0] if torch.is_tensor(seen[0]) else seen[0][0]
