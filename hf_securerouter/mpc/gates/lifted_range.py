# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whether a lifted value is within its bound, for the guard of a run (`gates/guard.py`), read off its opening.

A lift (`gates/lift.py`) opens a value in a ring of four times its range, of which the coarse index of the opening
counts 32 parts.

Who sees what: nothing is opened here. Cost: none online; dealer 4 B an element, and nothing without a guard.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import Thermometer, deal_thermometer
from .gate import Dealing, Tuple
from .guard import Guard


_INDEX_BITS = 5


def deal_lifted_range(dealing: Dealing, mask: Tensor, bits: int) -> None:
    """Deal what `LiftedRange` reads, if the plan is guarded: 4 B an element.

    Args:
        dealing (`Dealing`): Of the gate.
        mask (`torch.Tensor`): The mask r of the opening, int64 in [0, 2^`bits`).
        bits (`int`): k, the ring of the opening, at least 5.
    """
    if dealing.guarded:
        deal_thermometer(dealing, mask >> (bits - _INDEX_BITS), 1 << _INDEX_BITS)


class LiftedRange:
    """Notes, if the run is guarded, which lifted values are beyond their bound.

    Args:
        randomness (`Tuple`): Tuple of the gate that lifts, at the place where `deal` called `deal_lifted_range`.
        shape (`tuple[int, ...]`): Shape of the value x.
        bits (`int`): k, the ring of the opening; |x| < 2^(k-2) is the bound.
    """

    def __init__(self, randomness: Tuple, shape: tuple[int, ...], bits: int) -> None:
        self._guard: Guard | None = randomness.guard
        self._shift = bits - _INDEX_BITS
        if self._guard is not None:
            self._index = Thermometer(randomness, shape, 1 << _INDEX_BITS)

    def note(self, opened: Tensor) -> None:
        """Read the bits off c = x + 2^(k-2) + r, int64 in [0, 2^k)."""
        if self._guard is not None:
            # The coarse index of x + 2^(k-2) may be one too high, so that only 1 to 15 is certainly below 2^(k-1).
            index = self._index.between(opened.to(torch.int64) >> self._shift, 1, 1 << (_INDEX_BITS - 1))
            self._guard.note_inside(index)
