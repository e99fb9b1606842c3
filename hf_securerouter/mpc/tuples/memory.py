# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How much memory a plan takes at each role, known before any input.

At a party, a tuple lives from the gate that takes it until that gate is done, and gates that run side by side hold
theirs together: the plan says which. The arrays in between are counted in units of what a gate opens and of its
largest draw; how many there are at once was measured, and `test_memory.py` of the masked protocol compares both.
"""

from __future__ import annotations

import math

from ..gates.gate import drawn_bytes
from .deal import SIDE_BY_SIDE
from .plan import Plan


# Arrays at once, of 8 bytes a word that is opened or masked, and of the size of the largest draw.
_PARTY_WORDS, _PARTY_DRAWS = 10, 3
_DEALER_WORDS, _DEALER_DRAWS = 8, 4


def party_bytes(plan: Plan, rank: int) -> int:
    """Peak bytes of a run's tuples and arrays at party `rank`, without words drawn ahead and without weights."""
    most = 0
    for index in range(len(plan.gates)):
        alive = [other for other in range(index + 1) if plan.ends[other] > index]
        held = sum(drawn_bytes(plan.draws[other]) for other in alive)
        if rank == 0:
            held += sum(plan.correction_bytes[other] for other in alive)
        most = max(most, held + _working_bytes(plan, index, _PARTY_WORDS, _PARTY_DRAWS))
    return most


def dealer_bytes(plan: Plan) -> int:
    """Peak bytes of dealing a set, without the masks of weights."""
    # Corrections are joined, and those of gates that are done early wait until it is their turn.
    dealing = [
        _working_bytes(plan, index, _DEALER_WORDS, _DEALER_DRAWS) + 2 * size
        for index, size in enumerate(plan.correction_bytes)
    ]
    waiting = max(plan.correction_bytes, default=0)
    return waiting + max((sum(dealing[start : start + SIDE_BY_SIDE]) for start in range(len(dealing))), default=0)


def _working_bytes(plan: Plan, index: int, words: int, draws: int) -> int:
    """Bytes of a gate's arrays beside its tuple."""
    sizes = [drawn_bytes([draw]) for draw in plan.draws[index]]
    opened = [math.prod(shape) for kind, shape, _ in plan.draws[index] if kind in ("mask", "free")]
    return 8 * words * max(opened, default=0) + draws * max(sizes, default=0)
