"""Greedy decoding with a top on its trunk: the tokens that `generate` of the whole adapted model gives."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from domainkit.model import decode
from domainkit.model.base import Base, load_base
from domainkit.model.decode import whole, write
from domainkit.model.draft import Draft
from domainkit.model.split import Skip
from domainkit.model.top import Top, adapt, lora_config
from tests.tiny import FAMILIES, make_base

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT = 16


def moved(top: Top) -> dict[str, torch.Tensor]:
    """Give the adapter weights as training would; returns them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in top.trainable().values():
            value.copy_(torch.randn_like(value) * 0.2)
    return {name.removeprefix("model."): value.detach().clone() for name, value in top.trainable().items()}


def prompts(base: Base, sizes: Sequence[int]) -> list[list[int]]:
    draw = random.Random(0)
    return [[base.prefix_id, *(draw.randrange(3, 500) for _ in range(size))] for size in sizes]


def generated(model: Any, base: Base, prompt: Sequence[int]) -> str:
    """What transformers' own greedy search writes, up to where a draft ends."""
    stop = {base.prefix_id, int(base.tokenizer.eos_token_id)}
    ids = torch.tensor([list(prompt)])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False,
                         eos_token_id=sorted(stop))  # fmt: skip
    draft = Draft(lambda ids: str(base.tokenizer.decode(list(ids), skip_special_tokens=True)), stop)
    for token in out[0, len(prompt) :].tolist():
        if not draft.done:
            draft.advance([token])
    return draft.text


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_of_the_whole_adapted_model(family: str, tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path, family), bits=32)
    top = adapt(base, {}, layers=2, rank=4).eval()
    weights = moved(top)
    asked = prompts(base, (3, 30, 7, 12))
    ours = write(base, top, asked, limit=LIMIT)
    with top.untouched():
        untouched = write(base, top, asked, limit=LIMIT)
    assert untouched == [generated(base.model, base, prompt) for prompt in asked]
    model: PeftModel = get_peft_model(base.model, lora_config(base, layers=2, rank=4, alpha=32)).eval()
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert ours == [generated(model, base, prompt) for prompt in asked]
    assert ours != untouched and any(ours)


def test_what_is_taken_back_leaves_no_trace(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step the next tokens are those after the prompt and what stands in the text, nothing else."""
    base = load_base(tiny_base, bits=32)
    top = adapt(base, {}, layers=2).eval()
    moved(top)
    asked = prompts(base, range(2, 12))
    drafts: dict[int, list[int]] = {}  # of a draft, its tokens at the last step
    taken, forward = [], decode._Writing._forward

    def checked(self: Any) -> list[list[int]]:
        found = forward(self)
        for draft, likely, length in zip(self.drafts, found, self.lengths, strict=True):
            ids = [*next(one for one in asked if len(one) == length), *draft.tokens]
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert likely[0] == int(logits.argmax())
            taken.append(drafts.get(id(draft), []) != draft.tokens[:-1])
            drafts[id(draft)] = list(draft.tokens)
        return found

    monkeypatch.setattr(decode._Writing, "_forward", checked)
    free = write(base, top, asked, limit=LIMIT)
    assert not any(taken)
    words = {word for text in free for word in re.findall(r"\w+", text)[::2]}

    def rule(text: str) -> list[int]:
        return [m.end() for m in re.finditer(r"\w+", text) if m[0] in words]

    kept = write(base, top, asked, limit=LIMIT, unfit=[rule] * len(asked))
    assert kept != free and not any(map(rule, kept)) and sum(map(len, kept)) > 80
    assert sum(taken) > 5


def test_the_top_is_as_before(tiny_base: Path) -> None:
    base = load_base(tiny_base, bits=32)
    top = adapt(base, {}, layers=2).eval()
    with pytest.raises(RuntimeError, match="within"), whole(base, top) as model:
        assert not any(isinstance(layer, Skip) for layer in base.layers_of(model))
        raise RuntimeError("within")
    skips = [isinstance(layer, Skip) for layer in base.layers_of(cast(PreTrainedModel, top.model.get_base_model()))]
    assert skips == [True, True, False, False]
    assert write(base, top, [], limit=3) == []
