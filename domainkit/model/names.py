"""Names as the backbone's input embedding has them: no forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from domainkit.model.base import Base


@torch.no_grad()
def embed_names(base: Base, names: Sequence[str]) -> np.ndarray:
    """The mean of the input embedding's rows of each name's tokens, as it stands in running text: (names, width).

    In lower case, float32; zeros for a blank name.
    """
    written = [f" {name.lower().strip()}".rstrip() for name in names]
    tokens = base.tokenizer(written, add_special_tokens=False)["input_ids"] if written else []
    rows = base.input_rows
    flat = torch.tensor(list(chain.from_iterable(tokens)), dtype=torch.long, device=rows.device)
    starts = torch.tensor([0, *accumulate(map(len, tokens))][:-1], dtype=torch.long, device=rows.device)
    return embedding_bag(flat, rows, starts, mode="mean").float().cpu().numpy()
