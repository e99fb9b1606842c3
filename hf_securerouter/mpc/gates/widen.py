# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A bounded value in a wider ring: a lift (`lift.py`) and nothing else.

A value that is only moved (shuffled, selected) is shared in a small ring, and is widened before it meets weights.

Who sees what: c = x + 2^(k-2) + r mod 2^k, uniform because r is.
Cost: k bits an element, one round. Dealer: 2 (K - k) bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from .gate import Dealing, Gate, SecretProtocol
from .lift import Lift, deal_lift
from .party import Party
from .secret import Secret


@dataclass(frozen=True)
class Widen(Gate):
    """x mod 2^K from x mod 2^k.

    Args:
        shape (`tuple[int, ...]`): Shape of x.
        bits (`int`): k; |x| < 2^(k-2) as an integer.
        width (`int`): K.
    """

    shape: tuple[int, ...]
    bits: int
    width: int

    def deal(self, dealing: Dealing) -> None:
        deal_lift(dealing, self.shape, self.bits, self.width)

    def run(self, party: Party, x: Secret) -> SecretProtocol[Secret]:
        """Open x and lift it.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `shape`, in a ring of at least k bits.

        Returns:
            `Secret`: The same value at the same scale, in Z_2^K.
        """
        lift = Lift(party.take(self), self.shape, self.bits, self.width)
        (opened,) = yield [lift.opening(x)]
        lift.opened(opened)
        return party.secret(lift.value(), self.width, x.scale, x.bound)
