"""Work by several threads: in order, as if by one, and torch's own threads are as before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from domainkit.nets import lsh
from domainkit.nets.threads import in_turn

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(in_turn(slow_first, range(20), CPU)) == [item * item for item in range(20)]


def test_as_many_threads_as_torch_has_each_with_one(threads: int) -> None:
    meet = threading.Barrier(threads)

    def work(_: int) -> tuple[str, int]:
        meet.wait(30)
        return threading.current_thread().name, torch.get_num_threads()

    found = set(in_turn(work, range(2 * threads), CPU))
    assert len({name for name, _ in found}) == threads
    assert {of for _, of in found} == {1}
    assert torch.get_num_threads() == threads
    later = list[int]()
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert later == [threads]  # a thread that comes later has as many as before


def test_what_is_done_with_results_meanwhile_leaves_the_cores_to_the_work(threads: int) -> None:
    assert {torch.get_num_threads() for _ in in_turn(lambda item: item, range(50), CPU)} == {1}
    assert torch.get_num_threads() == threads


def test_no_result_is_made_far_ahead(threads: int) -> None:
    made = list[int]()
    results = in_turn(lambda item: made.append(item), range(1000), CPU)
    next(results)
    time.sleep(0.05)
    assert len(made) <= 2 * threads + 1
    results.close()


@pytest.mark.parametrize("inference", [False, True])
def test_the_work_is_done_in_the_modes_of_the_caller_without_gradients(inference: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    with torch.inference_mode(inference):
        for found in in_turn(lambda item: weight * item, range(5), CPU):
            assert not found.requires_grad
            assert found.is_inference() == inference


def test_a_fault_is_raised_where_the_results_are_taken() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_turn(lambda item: 1 // item, range(-9, 9), CPU))


def test_attention_has_the_same_bits_by_any_number_of_threads(threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(1, heads, 1300, 16, generator=g).requires_grad_() for heads in (4, 2, 2)]

    def attended() -> list[torch.Tensor]:
        out = lsh.attend(*given, 0.25, keys=24)
        return [out, *torch.autograd.grad(out.square().sum(), given)]

    found = attended()
    torch.set_num_threads(1)
    for one, other in zip(attended(), found, strict=True):
        assert torch.equal(one, other)
