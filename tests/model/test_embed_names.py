"""Names by the input embedding: the mean of their tokens' rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domainkit.model.base import Base, load_base
from domainkit.model.names import embed_names


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, bits=32)


def test_a_name_is_the_mean_of_its_rows_in_running_text(base: Base) -> None:
    found = embed_names(base, ["Heart  Attack", "drug"])
    ids = base.tokenizer.encode(" heart  attack", add_special_tokens=False)
    assert found.shape == (2, base.width) and found.dtype == np.float32 and len(ids) > 2
    np.testing.assert_allclose(found[0], base.embedding.weight[ids].mean(0).numpy(), atol=1e-6)


def test_case_and_outer_spaces_are_nothing(base: Base) -> None:
    one, other = embed_names(base, [" DRUG ", "drug"])
    assert (one == other).all()


def test_blank_names_are_zeros_and_move_nothing(base: Base) -> None:
    blank, drug, empty, emoji = embed_names(base, ["", "drug", "  ", "😀"])
    assert not blank.any() and not empty.any() and emoji.any()
    assert (drug == embed_names(base, ["drug"])[0]).all()
    assert embed_names(base, []).shape == (0, base.width)
