# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""exp(-y) for y >= 0 of wide range, in a window.

Open c = y + r. Within a period of 16, with n the multiple of 4 in c - r and phi = (c mod 4) - (r mod 4) in (-4, 4),
y = 4 n + phi exactly, carry or not, so

    exp(-y) = sum over v in 0..3 of [v = (r mod 16) div 4] e^(r mod 4) * exp(-((c - 4 v) mod 16)),

public factors times the dealer's words. The coarse index of the same opening, in steps of 2, tells whether y is in the
window: n < 6 means y < 12, as the top unit of the window must stay empty; otherwise y > 10, where exp(-y) < 5e-5
counts as 0. The attention mask hides a key by adding half the ring to its y.

Who sees what: c is uniform because r is; the bit is opened under a mask bit of its own.
Cost: `range_bits` + f bits and one bit an element, 2 rounds. Dealer at 9 range bits, K = 57: 89 B.
Error: 2^-13 and the rounding of y to f bits; below 5e-5 everything is 0.

Reference:
    Kelkar, Le, Raykova, Seth, Secure Poisson regression, USENIX Security 2022, section 4 (the exponential of a share).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .bits import Thermometer, choose, deal_thermometer, open_bits, spread
from .gate import Dealing, Gate, SecretProtocol
from .party import Party
from .secret import Secret


_PERIOD_BITS, _UNIT_BITS, _STEP_BITS = 4, 2, 1
_WORD_SCALE, _PUBLIC_SCALE = 14, 19
_UNITS = 1 << (_PERIOD_BITS - _UNIT_BITS)

EXP_SCALE = _WORD_SCALE + _PUBLIC_SCALE  # fraction bits of the result


@lru_cache(maxsize=4)
def _decay(scale: int) -> Tensor:
    """exp(-m) for m in [0, 16) in steps of 2^-scale, int64."""
    steps = np.arange(2 ** (_PERIOD_BITS + scale)) * 2.0**-scale
    return torch.from_numpy(np.round(np.exp(-steps) * 2.0**_PUBLIC_SCALE).astype(np.int64))


@lru_cache(maxsize=4)
def _growth(scale: int) -> Tensor:
    """exp(m) for m in [0, 4) in steps of 2^-scale, int64."""
    steps = np.arange(2 ** (_UNIT_BITS + scale)) * 2.0**-scale
    return torch.from_numpy(np.round(np.exp(steps) * 2.0**_WORD_SCALE).astype(np.int64))


@dataclass(frozen=True)
class Exponential(Gate):
    """exp(-y), 0 beyond y = 12.

    Args:
        shape (`tuple[int, ...]`): Shape of y.
        range_bits (`int`): The ring of the opening has 2^`range_bits` whole units: 0 <= y < 2^`range_bits` - 2.
        scale (`int`): f, the fraction bits of y.
        width (`int`): K, the ring of the result.
    """

    shape: tuple[int, ...]
    range_bits: int
    scale: int
    width: int

    @property
    def positions(self) -> int:
        """Steps of the coarse index."""
        return 1 << (self.range_bits - _STEP_BITS)

    def deal(self, dealing: Dealing) -> None:
        mask = dealing.mask(self.shape, self.range_bits + self.scale).to(torch.int64)
        deal_thermometer(dealing, mask >> (self.scale + _STEP_BITS), self.positions)
        bit = dealing.mask(self.shape, 1).to(torch.int64)
        unit = (mask >> (self.scale + _UNIT_BITS)) & (_UNITS - 1)
        grown = dealing.constant(_growth(self.scale))[mask & ((1 << (self.scale + _UNIT_BITS)) - 1)]
        words = torch.stack([torch.where(unit == v, grown, 0) for v in range(_UNITS)])
        dealing.give(words * (1 - bit), self.width)
        dealing.give(words * bit, self.width)

    def run(self, party: Party, y: Secret) -> SecretProtocol[Secret]:
        """Open y, read the window bit off the opening, open this bit masked, combine.

        Args:
            party (`Party`): The party.
            y (`Secret`): Of shape `shape`, in a ring of at least `range_bits` + f bits.

        Returns:
            `Secret`: In Z_2^K at scale `EXP_SCALE`, bound 0 (at most 1).
        """
        randomness = party.take(self)
        mask = randomness.mask(self.shape, self.range_bits + self.scale)
        index = Thermometer(randomness, self.shape, self.positions)
        (opened,) = yield [randomness.open(y.narrow(self.range_bits + self.scale).words, mask)]
        near = index.between(opened >> (self.scale + _STEP_BITS), 0, 6)
        (flipped,) = yield from open_bits(party, randomness, [near])
        words = (_UNITS, *self.shape)
        if_set, if_clear = randomness.word(words, self.width), randomness.word(words, self.width)
        decay, flip = party.constant(_decay(self.scale)), spread(flipped)
        period = (1 << (_PERIOD_BITS + self.scale)) - 1
        total = torch.zeros_like(if_set[0])
        for v in range(_UNITS):
            position = (opened - (v << (self.scale + _UNIT_BITS))) & period
            factor = decay.index_select(0, position.view(-1)).view(self.shape)
            total.addcmul_(choose(flip, if_set[v], if_clear[v]), factor)
        return party.secret(total, self.width, EXP_SCALE, 0)
