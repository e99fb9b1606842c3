# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""ReLU, and the selection of a value by a secret bit.

The bit u is held as XOR shares. Open v = u xor b for a random bit b: then u = v + (1 - 2v) b, and u x follows from
shares of b, b r and b t, where r and t are the mask of x's lift and its top bit (`gates/lift.py`). Which of x and
b x is needed depends on v only.

This is also the example of a gate: `deal` draws masks and gives words in the order in which `run` reads them.

Who sees what: c is uniform because r is; each opened bit has a mask bit of its own, b among them, used once.
Cost at k = 32: 6 B a party, 4 rounds. Dealer 16 B of thermometers, 5 B of bits, 5 K - 3 k bits of words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import open_bits
from .compare import Comparison
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .lift import Lift, LiftMask, deal_lift
from .party import Party
from .secret import Secret


def deal_select(dealing: Dealing, lift: LiftMask, bits: int, width: int) -> None:
    """Deal for the mask of a lift what `select` reads."""
    bit = dealing.mask(tuple(lift.mask.shape), 1).to(torch.int64)
    dealing.give(bit, width)
    lift.give_products(dealing, bit, bits, width)


def select(party: Party, randomness: Tuple, lift: Lift, bit: Tensor, value: Tensor) -> SecretProtocol[Tensor]:
    """A share of bit * x mod 2^K.

    Args:
        party (`Party`): The party.
        randomness (`Tuple`): Tuple of the gate, read up to where `deal_select` dealt.
        lift (`Lift`): The lift of x, opened already.
        bit (`torch.Tensor`): XOR share of the bit, uint8.
        value (`torch.Tensor`): A share of x mod 2^K.

    Returns:
        `torch.Tensor`: int64 of the shape of x. One round, one bit an element.
    """
    (flipped,) = yield from open_bits(party, randomness, [bit])
    shape = tuple(bit.shape)
    hidden = randomness.word(shape, lift.width)
    selected = lift.times(hidden, lift.products(shape))
    return torch.where(flipped.bool(), value - selected, selected)


@dataclass(frozen=True)
class ReLU(Gate):
    """max(x, 0).

    Args:
        shape (`tuple[int, ...]`): Shape of x.
        bits (`int`): k, the ring in which x is opened; |x| < 2^(k-2) as an integer.
        width (`int`): K, the ring of the result.
    """

    shape: tuple[int, ...]
    bits: int
    width: int

    def deal(self, dealing: Dealing) -> None:
        lift = deal_lift(dealing, self.shape, self.bits, self.width)
        Comparison.deal(dealing, lift.mask, self.bits, 1)
        deal_select(dealing, lift, self.bits, self.width)

    def run(self, party: Party, x: Secret) -> SecretProtocol[Secret]:
        """Compare with zero, then select.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `shape`, in a ring of at least k bits.

        Returns:
            `Secret`: In Z_2^K, at the scale and bound of x; exact.
        """
        randomness = party.take(self)
        lift = Lift(randomness, self.shape, self.bits, self.width)
        comparison = Comparison(randomness, self.shape, self.bits)
        (opened,) = yield [lift.opening(x)]
        lift.opened(opened)
        negative = yield from comparison.run(opened, (1 << (self.bits - 2),))
        positive = negative[0] ^ 1 if party.rank == 0 else negative[0]
        words = yield from select(party, randomness, lift, positive, lift.value())
        return party.secret(words, self.width, x.scale, x.bound)
