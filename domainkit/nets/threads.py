"""Many alike pieces of work on a CPU: several threads of Python, in each of which torch works with one of its own.

Where a piece is a chain of small operations, this keeps the cores busier than torch's threads inside each operation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_turn(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """What `work` gives for each item, without gradients, in the items' order.

    On a CPU as many threads do it as torch has; no more than two results for each of them are ahead of what is taken.
    Fewer items than threads are left to torch's own. What the caller does with a result before it takes the next, one
    thread of torch does too.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def alone(item: Item) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # each thread has modes of its own
            return work(item)

    if device.type != "cpu" or threads == 1 or len(items) < threads:
        yield from map(alone, items)
        return
    ahead: deque[Future[Result]] = deque()
    torch.set_num_threads(1)  # for what is done with results meanwhile: torch's threads would wait busily for a core
    try:
        with ThreadPoolExecutor(threads, "in-turn", torch.set_num_threads, (1,)) as pool:
            for item in items:
                ahead.append(pool.submit(alone, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        torch.set_num_threads(threads)  # else 1 would hold for every thread that comes later
