# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The dealer: makes sets of tuples from a plan, and how parties read them.

A set serves one run of a plan. P1's part is a seed, P0's a seed and the corrections. The dealer sees the plan, the
seeds and the weights' masks B: no input, no opened value and no masked weight D.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..gates.gate import Dealing, Gate, Tuple, drawn_bytes
from ..ring.device import room
from ..ring.randomness import Csprng
from .plan import Plan


# Gates that a dealer makes at the same time on a CPU; ciphers and tensor operations leave the interpreter to others.
_SIDE_BY_SIDE = 2


def _source(plan: Plan, seed: bytes, index: int, device: str) -> Csprng:
    return Csprng(seed, b"tuple/%d" % index, plan.cipher, device)


def deal_set(
    plan: Plan,
    seeds: tuple[bytes, bytes],
    weight_mask: Callable[[str], Tensor] | None = None,
    device: str = "cpu",
) -> Iterator[Tensor]:
    """Make one set of tuples.

    Args:
        plan (`Plan`): Which gates, in order.
        seeds (`tuple[bytes, bytes]`): Fresh seeds of P0 and P1; never used for another set.
        weight_mask (callable, *optional*): From the name of a fixed weight to its mask B, on `device`.
        device (`str`): Where the dealer computes.

    Yields:
        `torch.Tensor`: P0's corrections for one gate after another, uint8 in host memory, of the lengths that the
        plan states.
    """

    def deal(index: int) -> Tensor:
        gate, size = plan.gates[index], plan.correction_bytes[index]
        first, second = (_source(plan, seed, index, device) for seed in seeds)
        dealing = Dealing((first, second), weight_mask, device)
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
    # Every gate has streams of its own, so that the order in which gates are made changes nothing.
    under_way: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        try:
            for index in range(len(plan.gates)):
                under_way.append(pool.submit(deal, index))
                if len(under_way) > _SIDE_BY_SIDE:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class TupleSet:
    """One party's set: hands out each tuple once, in order, and prepares ahead what needs no input.

    Args:
        plan (`Plan`): As traced by this party.
        rank (`int`): 0 or 1.
        seed (`bytes`): This party's seed for the set.
        corrections (callable, *optional*): Rank 0: from a gate's index to its corrections, uint8.
        device (`str`): Where the party computes.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        seed: bytes,
        corrections: Callable[[int], Tensor] | None = None,
        device: str = "cpu",
    ):
        self._plan, self._rank, self._seed, self._corrections = plan, rank, seed, corrections
        self._device = device
        self._ready: dict[int, Tuple] = {}
        self._next = 0

    def _tuple(self, index: int) -> Tuple:
        corrections = self._corrections(index).to(self._device) if self._corrections is not None else None
        source = _source(self._plan, self._seed, index, self._device)
        return Tuple(self._plan.gates[index], self._rank, source, corrections)

    def prepare(self, party: object) -> None:
        """Compute everything that gates can compute before the input is there (see `Gate.prepare`).

        Where memory allows, a CPU draws the words of the first gates now, and a CUDA device gets all corrections:
        copies take longer than gates.
        """
        left = room(self._device)
        copies = self._device != "cpu" and self._corrections is not None and self._plan.dealer_bytes <= left
        for index, gate in enumerate(self._plan.gates[self._next :], start=self._next):
            if type(gate).prepare is not Gate.prepare or copies:
                ready = self._ready[index] = self._tuple(index)
                ready.prepared = gate.prepare(ready, party)  # type: ignore[arg-type]
            elif self._device == "cpu" and (size := drawn_bytes(self._plan.draws[index])) <= left:
                left -= size
                self._ready[index] = self._tuple(index)
                self._ready[index].read_ahead(self._plan.draws[index])

    def __call__(self, gate: Gate) -> Tuple:
        """The next tuple, which must be `gate`'s; it is forgotten here at once."""
        index, self._next = self._next, self._next + 1
        if index >= len(self._plan.gates) or self._plan.gates[index] != gate:
            raise SecureRouterError(f"Gate {index} of the plan is not `{gate.name}` as the model asks for it now.")
        found = self._ready.pop(index, None)
        return found if found is not None else self._tuple(index)
