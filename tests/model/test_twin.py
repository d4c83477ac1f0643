"""A base that another process loads is the same, whatever it was given since it was read from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from domainkit.model.base import Base, load_base
from domainkit.model.rows import Rows, extend
from domainkit.model.trunk import depends_on
from domainkit.model.twin import Twin
from tests.tiny import make_base

CONTEXT = 64


def grown(base: Base) -> Base:
    """With rows for three tokens of a glossary."""
    torch.manual_seed(0)
    rows = Rows(torch.randn(3, base.width), None if base.tied else torch.randn(3, base.width))
    return extend(base, base.tokenizer, len(base.embedding.weight), rows)


@pytest.mark.parametrize("tied", [True, False])
def test_a_twin_has_the_rows_of_the_glossary(tmp_path: Path, tied: bool) -> None:
    base = grown(load_base(make_base(tmp_path / "base", tied=tied), bits=32))
    twin = Twin.of(base, "auto", CONTEXT, tmp_path / "rows.safetensors")
    other = twin.load()
    assert other.added == base.added and depends_on(other, 2, "auto") == depends_on(base, 2, "auto")
    assert torch.equal(other.embedding.weight, base.embedding.weight)
    assert torch.equal(other.head.weight, base.head.weight)


def test_a_twin_is_read_as_its_base_was(tiny_base: Path, tmp_path: Path) -> None:
    """In the same bits, with positions as far stretched, and as many layers on disk."""
    base = load_base(tiny_base, bits=4, attention="eager", context=1024, stream="always", keep=2)
    twin = Twin.of(base, "auto", 1024, tmp_path / "rows.safetensors")
    other = twin.load()
    assert not (tmp_path / "rows.safetensors").exists()
    assert other.streamed == base.streamed == 2 and other.positions == base.positions != ""
    assert depends_on(other, 2, "auto") == depends_on(base, 2, "auto")
