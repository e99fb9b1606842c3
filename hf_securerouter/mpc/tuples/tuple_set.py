# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One party's tuples of one run, handed out gate by gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ...errors import SecureRouterError
from ..gates.gate import Gate, Tuple, drawn_bytes
from ..gates.weight_share import WeightShare
from .plan import Plan


class TupleSet:
    """Hands out one party's tuples, each once and in order, and precomputes what needs no input.

    Args:
        plan (`Plan`): The plan that this party traced.
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
        source = self._plan.words(self._seed, index, self._device)
        return Tuple(self._plan.gates[index], self._rank, source, corrections)

    def prepare(self, weights: Mapping[str, WeightShare], ahead: int) -> None:
        """Compute what gates can compute before the input arrives (see `Gate.prepare`), as far as memory allows.

        What then is left of the memory holds the words of the first gates on a CPU; a CUDA device receives all
        corrections, if they fit, because a copy takes longer than a gate. Gates that are not prepared do the same
        when it is their turn.

        Args:
            weights (`Mapping[str, WeightShare]`): This party's shares of the fixed weights.
            ahead (`int`): Bytes that may be taken before the input arrives.
        """
        copies = self._device != "cpu" and self._corrections is not None and self._plan.dealer_bytes <= ahead
        plain = []
        for index, gate in enumerate(self._plan.gates[self._next :], start=self._next):
            size = drawn_bytes(self._plan.draws[index])
            if type(gate).prepare is Gate.prepare and not copies:
                plain.append((index, size))
            elif size <= ahead:
                ahead -= size
                ready = self._ready[index] = self._tuple(index)
                ready.prepared = gate.prepare(ready, weights)
        for index, size in plain if self._device == "cpu" else []:
            if size <= ahead:
                ahead -= size
                self._ready[index] = self._tuple(index)
                self._ready[index].read_ahead(self._plan.draws[index])

    def __call__(self, gate: Gate) -> Tuple:
        """Hand out the next tuple, which must be `gate`'s, and keep no copy.

        Raises:
            `SecureRouterError`: The next gate of the plan is not `gate`.
        """
        index, self._next = self._next, self._next + 1
        if index >= len(self._plan.gates) or self._plan.gates[index] != gate:
            raise SecureRouterError(f"Gate {index} of the plan is not `{gate.name}` as the model asks for it now.")
        found = self._ready.pop(index, None)
        return found if found is not None else self._tuple(index)
