"""Translator: pairs it learned are found, a relation they share carries over, and all of it is kept with a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from domainkit.nets import translate
from domainkit.nets.translate import RIDGE, Translator

WIDTH, ANSWERS, UNSEEN = 16, 300, 100
NEWLINE = 9

pytestmark = pytest.mark.usefixtures("one_thread")


def world(seed: int = 0, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Rows of forms and the table of their answers: the one is the other turned, shifted, and not quite exact."""
    draw = torch.Generator().manual_seed(seed)
    table = torch.randn(ANSWERS, WIDTH, generator=draw) + 2 * torch.randn(WIDTH, generator=draw)
    turned = table @ torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw)).Q
    return turned + noise * torch.randn(ANSWERS, WIDTH, generator=draw) - 3, table


def fresh(answers: int = ANSWERS, width: int = WIDTH) -> Translator:
    return Translator(range(answers), [True] * answers, width, newline=NEWLINE, closing=2)


def solved(seed: int = 0) -> tuple[Translator, Tensor, Tensor]:
    """A translator that learned all answers but the last UNSEEN."""
    rows, table = world(seed)
    made = fresh()
    made.solve(rows[:-UNSEEN], torch.arange(ANSWERS - UNSEEN), table)
    return made, rows, table


def right(made: Translator, rows: Tensor, table: Tensor) -> Tensor:
    """Whether each form finds its answer among all: (forms,)."""
    return made(rows, table).argmax(-1) == torch.arange(len(rows))


def test_what_it_learned_it_finds() -> None:
    made, rows, table = solved()
    assert right(made, rows, table)[:-UNSEEN].float().mean() > 0.98


def test_forms_that_follow_no_rule_are_learned_by_heart() -> None:
    """Far apart, each is near to itself alone: the Gaussian part knows them one by one."""
    torch.manual_seed(0)
    rows, table = torch.randn(50, 64), torch.randn(50, 64)
    made = fresh(50, 64)
    made.solve(rows, torch.arange(50), table)
    scores = made(rows, table)
    assert torch.equal(scores.argmax(-1), torch.arange(50))
    assert made.cosines(scores).diagonal().min() > 0.95


def test_what_pairs_share_carries_over_to_pairs_it_never_saw() -> None:
    """Answers that no form it learned has can win: by chance 1 of 300 would."""
    made, rows, table = solved()
    assert right(made, rows, table)[-UNSEEN:].float().mean() > 0.7


def test_a_relation_that_is_none_carries_nothing_over() -> None:
    made, rows, table = solved()
    mixed = table[torch.randperm(ANSWERS, generator=torch.Generator().manual_seed(1))]
    made.solve(rows[:-UNSEEN], torch.arange(ANSWERS - UNSEEN), mixed)
    assert right(made, rows, mixed)[-UNSEEN:].float().mean() < 0.05


def test_several_forms_may_mean_the_same() -> None:
    rows, table = world()
    near = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    made = fresh()
    made.solve(torch.cat([rows, near]), torch.arange(ANSWERS).repeat(2), table)
    assert right(made, rows, table).float().mean() > 0.98 and right(made, near, table).float().mean() > 0.98


def test_only_the_forms_and_the_direction_of_the_answers_count() -> None:
    """Neither a shift of either language nor the length of an answer's row about the middle changes anything."""
    made, rows, table = solved()
    expected = made(rows, table)
    other = fresh()
    other.solve(3 * rows[:-UNSEEN] + 5, torch.arange(ANSWERS - UNSEEN), 0.5 * table - 7)
    torch.testing.assert_close(other(3 * rows + 5, 0.5 * table - 7), expected, rtol=1e-3, atol=1e-3)


def test_it_is_kernel_ridge_regression_with_a_handicap_for_the_crowded() -> None:
    """Term by term, as the papers write it, in double precision."""
    made, rows, table = solved()
    known, gold = rows[:-UNSEEN].double(), torch.arange(ANSWERS - UNSEEN)
    centred = table.double() - table.double().mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True)
    scale = (known - known.mean(0)).square().sum(1).mean()

    def kernel(asked: Tensor) -> Tensor:
        linear = (asked - known.mean(0)) @ (known - known.mean(0)).T
        far = (asked[:, None] - known).square().sum(-1)
        return linear / scale + translate.LOCAL * torch.exp(-far / scale / translate.REACH)

    dual = torch.linalg.solve(kernel(known) + RIDGE * torch.eye(len(known)).double(), unit[gold])

    def predicted(asked: Tensor) -> Tensor:
        found = kernel(asked) @ dual
        return found / found.norm(dim=1, keepdim=True)

    crowd = (predicted(known) @ unit.T).topk(10, dim=0).values.mean(0)
    cosine = predicted(rows.double()) @ unit.T
    scores = made(rows, table)
    torch.testing.assert_close(scores.double(), 2 * cosine - crowd, rtol=0, atol=1e-3)
    torch.testing.assert_close(made.cosines(scores).double(), cosine, rtol=0, atol=1e-3)


def test_an_answer_near_to_everything_does_not_win_everything() -> None:
    made, rows, table = solved()
    scores = made(rows, table)
    by_cosine = made.cosines(scores).argmax(-1).bincount(minlength=ANSWERS)
    assert scores.argmax(-1).bincount(minlength=ANSWERS).max() <= by_cosine.max()
    assert made.crowd.std() > 0.01


def test_the_same_pairs_give_the_same_bits_and_one_query_does_not_change_another() -> None:
    (one, rows, table), (other, _, _) = solved(), solved()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    torch.testing.assert_close(one(rows[7:8], table), one(rows, table)[7:8])


@pytest.mark.parametrize("forms", [1, 2, 5])
def test_few_forms_are_enough(forms: int) -> None:
    rows, table = world()
    made = fresh()
    made.solve(rows[:forms], torch.arange(forms), table)
    scores = made(rows, table)
    assert scores.isfinite().all()
    assert right(made, rows[:forms], table).all()


def test_a_saved_one_is_loaded_whatever_it_learned() -> None:
    """A run is loaded with the names of its answers alone."""
    made, rows, table = solved()
    again = Translator([0] * ANSWERS, [False] * ANSWERS, WIDTH, newline=NEWLINE, closing=2)
    assert again.forms.shape != made.forms.shape
    holder = torch.nn.ModuleDict({"ask": again})
    holder.load_state_dict({f"ask.{name}": value for name, value in made.state_dict().items()})
    assert again.ids.tolist() == list(range(ANSWERS)) and again.known.all()
    assert torch.equal(again(rows, table), made(rows, table))


def test_what_is_missing_in_a_saved_one_is_told() -> None:
    made, again = solved()[0], fresh()
    saved = dict(made.state_dict())
    del saved["forms"]
    with pytest.raises(RuntimeError, match="forms"):
        again.load_state_dict(saved)


def test_nothing_in_it_learns() -> None:
    assert not list(solved()[0].parameters())


@given(text=st.lists(st.integers(0, 20)), form=st.lists(st.integers(10, 20), min_size=1))
def test_the_form_asked_for_is_the_last_line_without_its_end(text: list[int], form: list[int]) -> None:
    query: Any = (1, *text, NEWLINE, *form, NEWLINE + 1, 3)
    assert list(fresh(2).asked(query)) == form
