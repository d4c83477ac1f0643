"""Long held-out texts: no setting of the LSH attention was chosen on them, up to 32,768 tokens. `general-en` of 65,536
contains some that were."""

from __future__ import annotations

import importlib
import json
import pydoc
from collections.abc import Sequence

import torch
from torch import Tensor

from domainkit.assets import ROOT
from domainkit.model.base import Base
from domainkit.model.folder import quiet

TEXT = 8192  # tokens
PASSAGE = 1024  # tokens that are copied
MODULES = ("logging", "unittest.mock", "decimal", "tarfile", "asyncio")
NAMES = {  # name → what it is
    "pydoc": "reference text, Python's own",
    "fed": "speeches and minutes",
    "cfpb": "regulation",
    "statutes-finance": "statutes, Chinese",
    "general-en": "encyclopaedia",
    "general-zh": "encyclopaedia, Chinese",
}


def texts(base: Base, tokens: int, names: Sequence[str] = tuple(NAMES)) -> dict[str, Tensor]:
    """Ids (1, tokens) of each text that is long enough; of every file its last documents."""
    found = {}
    for name in names:
        with quiet():  # the tokenizer warns of texts longer than the base takes
            ids = base.tokenizer(_text(name, tokens))["input_ids"]
        if len(ids) < tokens:
            print(f"{name} has {len(ids):,} tokens of {tokens:,} and is left out")
        else:
            found[name] = torch.tensor([ids[:tokens]])
    return found


def copies(base: Base, tokens: int, names: Sequence[str] = tuple(NAMES)) -> dict[str, tuple[Tensor, slice]]:
    """Texts of so many tokens that begin with a passage of another text and end with the same, and which losses tell
    how well it is said again. The passage's first 32 tokens, by which it is known, do not count."""
    every = {name: ids[0] for name, ids in texts(base, max(tokens, TEXT)).items()}
    ring = list(every)
    found = {}
    for name, other in zip(ring, ring[1:] + ring[:1], strict=True):
        passage = every[other][4096 : 4096 + PASSAGE]
        if name in names:
            ids = torch.cat([passage, every[name][: tokens - 2 * PASSAGE], passage])
            found[f"{other} in {name}"] = (ids[None], slice(tokens - PASSAGE + 31, None))
    return found


def _text(name: str, tokens: int) -> str:
    if name == "pydoc":
        return "".join(pydoc.plain(pydoc.render_doc(importlib.import_module(module))) for module in MODULES)
    lines = (ROOT / f"tasks/finance/data/{name}.jsonl").read_text().splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines)[-60_000 * max(1, -(-tokens // TEXT)) :]
