# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Squares of all elements, or only of elements that a secret bit selects.

The value is lifted (`gates/lift.py`): with x = C - r + w t, x^2 needs shares of r, t, t r and r^2. For m x^2, with a
bit m that is opened as v = m xor b, the dealer gives these words times b and times 1 - b, and v tells which to use.

Who sees what: c of x, uniform because r is; m xor b, for a fresh b.
Cost: k bits an element (and one bit for each m), one round. Dealer: 4 K - 3 k - 1 bits; with
selection 8 K - 4 k - 2, and 2 K for each m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gate import Dealing, Gate, SecretProtocol
from .lift import Lift, Opened, deal_lift, squared
from .lifted_range import LiftedRange, deal_lifted_range
from .party import Party
from .secret import Secret


@dataclass(frozen=True)
class Square(Gate):
    """x^2.

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
        dealing.give(lift.mask * lift.mask, self.width)
        dealing.give(lift.top * lift.mask, self.width - self.bits - 1)

    def run(self, party: Party, x: Secret) -> SecretProtocol[Secret]:
        """Open x and square it.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `shape`, in a ring of at least k bits.

        Returns:
            `Secret`: In Z_2^K at twice the scale of x; exact.
        """
        square, _ = yield from self.both(party, x)
        return square

    def both(self, party: Party, x: Secret) -> SecretProtocol[tuple[Secret, Secret]]:
        """As `run`, and x itself in Z_2^K, which the opening lifts."""
        randomness = party.take(self)
        lift = Lift(randomness, self.shape, self.bits, self.width)
        square = randomness.word(self.shape, self.width)
        top_mask = randomness.word(self.shape, self.width - self.bits - 1)
        (opened,) = yield [lift.opening(x)]
        lift.opened(opened)
        words = squared(lift, lift.mask, lift.top, top_mask).add_(square)
        if party.rank == 0:
            words.addcmul_(lift.centre, lift.centre)
        own = party.secret(lift.value(), self.width, x.scale, x.bound)
        return party.secret(words, self.width, 2 * x.scale, 2 * x.bound), own


@dataclass(frozen=True)
class SelectedSquare(Gate):
    """m x^2 for a secret bit m a column.

    Args:
        shape (`tuple[int, ...]`): Shape of x, (B, ..., T).
        bits (`int`): k, the ring in which x is opened; |x| < 2^(k-2) as an integer.
        width (`int`): K, the ring of the result.
    """

    shape: tuple[int, ...]
    bits: int
    width: int

    @property
    def _bit_shape(self) -> tuple[int, ...]:
        return (self.shape[0], *[1] * (len(self.shape) - 2), self.shape[-1])

    def deal(self, dealing: Dealing) -> None:
        mask = dealing.mask(self.shape, self.bits).to(torch.int64)
        bit = dealing.mask(self._bit_shape, 1).to(torch.int64)
        top = mask >> (self.bits - 1)
        for chosen in (1 - bit, bit):
            dealing.give(chosen, self.width)
            dealing.give(chosen * mask, self.width)
            dealing.give(chosen * mask * mask, self.width)
            dealing.give(chosen * top, self.width - self.bits)
            dealing.give(chosen * top * mask, self.width - self.bits - 1)
        deal_lifted_range(dealing, mask, self.bits)

    def run(self, party: Party, x: Secret, bit: Tensor) -> SecretProtocol[Secret]:
        """Open x and the bits, square and select.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `shape`, in a ring of at least k bits.
            bit (`torch.Tensor`): XOR share of m, uint8 (B, T).

        Returns:
            `Secret`: In Z_2^K at twice the scale of x; exact.
        """
        randomness = party.take(self)
        mask, bit_mask = randomness.mask(self.shape, self.bits), randomness.mask(self._bit_shape, 1)
        opened, flipped = yield [
            randomness.open(x.narrow(self.bits).add_public(1 << (self.bits - 2)).words, mask),
            randomness.open(bit.view(self._bit_shape), bit_mask),
        ]
        widths = [self.width, self.width, self.width - self.bits, self.width - self.bits - 1]
        words = [
            [randomness.word(self._bit_shape, self.width), *(randomness.word(self.shape, width) for width in widths)]
            for _ in range(2)
        ]
        LiftedRange(randomness, self.shape, self.bits).note(opened)
        flip = flipped.bool()
        chosen, chosen_mask, square, top, top_mask = (
            torch.where(flip, if_set.to(torch.int64), if_clear.to(torch.int64))
            for if_set, if_clear in zip(*words, strict=True)
        )
        lift = Opened(opened, self.bits)
        total = squared(lift, chosen_mask, top, top_mask).add_(square).addcmul_(lift.centre * lift.centre, chosen)
        return party.secret(total, self.width, 2 * x.scale, 2 * x.bound)
