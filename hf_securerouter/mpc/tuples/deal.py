# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The dealer: makes a set of tuples from a plan.

A set serves one run of a plan. P1's part is a seed, P0's part a seed and the corrections. The dealer sees the plan,
the seeds and the weights' masks B, but no input, no opened value and no masked weight D.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..gates.gate import Dealing
from .plan import Plan


# Gates dealt concurrently on a CPU. AES and torch release the GIL, so threads help.
SIDE_BY_SIDE = 2


def deal_set(
    plan: Plan,
    seeds: tuple[bytes, bytes],
    weight_mask: Callable[[str], Tensor] | None = None,
    device: str = "cpu",
) -> Iterator[Tensor]:
    """Make one set of tuples.

    Args:
        plan (`Plan`): The gates, in order.
        seeds (`tuple[bytes, bytes]`): Fresh seeds of P0 and P1; never used for another set.
        weight_mask (callable, *optional*): From the name of a fixed weight to its mask B, on `device`.
        device (`str`): Where the dealer computes.

    Yields:
        `torch.Tensor`: P0's corrections for one gate after another, uint8 in host memory, of the lengths that the
        plan states.

    Raises:
        `SecureRouterError`: A gate deals another number of bytes than the plan states.
    """

    def deal(index: int) -> Tensor:
        gate, size = plan.gates[index], plan.correction_bytes[index]
        first, second = (plan.words(seed, index, device) for seed in seeds)
        dealing = Dealing((first, second), weight_mask, device, plan.guarded)
        gate.deal(dealing)
        corrections = torch.cat(dealing.corrections) if dealing.corrections else torch.empty(0, dtype=torch.uint8)
        if corrections.numel() != size:
            raise SecureRouterError(
                f"`{gate.name}` deals {corrections.numel()} bytes where its protocol reads {size}."
            )
        return corrections.cpu()

    if device != "cpu":
        yield from map(deal, range(len(plan.gates)))
        return
    # Every gate has its own keystreams, so the order of dealing does not change the tuples.
    under_way: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            for index in range(len(plan.gates)):
                under_way.append(pool.submit(deal, index))
                if len(under_way) > SIDE_BY_SIDE:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
