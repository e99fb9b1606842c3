# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whether a value that no gate lifts is within its bound, for the guard of a run (`gates/guard.py`).

The value is truncated to sixteenths of its bound, and opened in a ring of four or eight times its range. It is noted
from 15 of them on, so that two scores of a row that are not noted are less than 15/16 of two bounds apart. What is
bounded on both sides, a value a row, is compared exactly.

Who sees what: the opened word, uniform because its mask is; in a comparison, what `gates/compare.py` says.
Cost: 6 bits an element, or 7, one round. Dealer: 8 B, or 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...number_format import HIGHEST
from .bits import Thermometer, deal_thermometer
from .compare import Compare
from .gate import Dealing, Gate, SecretProtocol
from .party import Party
from .secret import Secret


_STEPS = 16  # of the bound


@dataclass(frozen=True)
class InRange(Gate):
    """Notes which values are beyond their bound.

    Args:
        shape (`tuple[int, ...]`): Shape of x.
        bits (`int`): Of the opening: 6 for a ring of four times the range, 7 for one of eight times.
    """

    shape: tuple[int, ...]
    bits: int = 6

    def deal(self, dealing: Dealing) -> None:
        deal_thermometer(dealing, dealing.mask(self.shape, self.bits).to(torch.int64), 1 << self.bits)

    def run(self, party: Party, x: Secret) -> SecretProtocol[None]:
        """Open x coarsely, and fold what is beyond into the party's guard.

        Args:
            party (`Party`): The party, which has a guard.
            x (`Secret`): Of shape `shape`, with its bound; at least 4 - bound fraction bits, in a ring of at least
                four times its range, or eight times.

        Raises:
            `SecureRouterError`: The ring or the scale is smaller.
        """
        assert party.guard is not None
        randomness = party.take(self)
        mask = randomness.mask(self.shape, self.bits)
        index = Thermometer(randomness, self.shape, 1 << self.bits)
        coarse = x.truncate((_STEPS - 1).bit_length() - x.bound).narrow(self.bits)
        (opened,) = yield [randomness.open(coarse.words.to(torch.uint8), mask)]
        # Truncation is off by less than one step, so a value of 15 steps or more has at least 15.
        middle, most = 1 << (self.bits - 1), _STEPS - 2
        inside = index.between(opened.to(torch.int64) + middle, middle - most, middle + most + 1)
        party.guard.note_inside(inside)


def noted(party: Party, x: Secret, bits: int = 6) -> list[SecretProtocol[None]]:
    """What notes the values of x beyond its bound, to be run beside other gates; empty without a guard."""
    return [] if party.guard is None else [InRange(x.shape, bits).run(party, x)]


def between(party: Party, x: Secret, low: int) -> SecretProtocol[None]:
    """Notes which values of x are below 2^`low`, or above `HIGHEST` of 2^`x.bound`, at a party with a guard.

    Raises:
        `SecureRouterError`: The ring of x is smaller than four times its range.
    """
    assert party.guard is not None
    top = x.scale + x.bound
    gate = Compare(x.shape, top + 2, (1 << max(x.scale + low, 0), int(HIGHEST * 2.0**top)))
    below = yield from gate.run(party, x.narrow(gate.bits))
    party.guard.note(below[0])
    party.guard.note_inside(below[1])
