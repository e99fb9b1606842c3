# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""XOR shares of facts about a masked value, read off its opening.

For h in [0, N) that only the dealer knows, it shares the thermometer [h <= 0], ..., [h <= N-1] as a string of N bits.
A look-up at a public position is then local, and so is [n in [a, b)] for n = (p - h) mod N, any public p, a, b: two
look-ups. With c = X + r mod 2^k cut at bit s, p = c >> s and h = r >> s, n is the *coarse index* of X: X lies in
((n-1) 2^s, (n+1) 2^s), whatever the carry was. Where neighbouring pieces of a function agree over 2^s of overlap, the
coarse index replaces a comparison. X must stay 2^s below the upper end of the range, or n wraps to 0.

Who sees what: nothing is opened here. Cost: none online; dealer N bits an element.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .gate import Dealing, SecretProtocol, Tuple
from .party import Party


@lru_cache(maxsize=32)
def _thermometers(positions: int) -> Tensor:
    rows = np.arange(positions)[:, None] <= np.arange(positions)[None, :]
    return torch.from_numpy(np.packbits(rows, axis=1, bitorder="little"))


def deal_thermometer(dealing: Dealing, hidden: Tensor, positions: int) -> None:
    """Share the thermometer of `hidden`, int64 in [0, `positions`); `positions` is a power of two, at least 8."""
    rows = dealing.constant(_thermometers(positions)).index_select(0, hidden.reshape(-1))
    dealing.give_bits(rows.view(*hidden.shape, positions // 8))


class Thermometer:
    """A party's XOR share of thermometers.

    Args:
        randomness (`Tuple`): Tuple of the gate that reads the thermometers.
        shape (`tuple[int, ...]`): Shape of the hidden value.
        positions (`int`): N.
    """

    def __init__(self, randomness: Tuple, shape: tuple[int, ...], positions: int):
        self._rank, self._positions = randomness.rank, positions
        self._bytes = randomness.bits((*shape, positions // 8))

    def at(self, position: Tensor) -> Tensor:
        """A share of [h <= position mod N], uint8 0 or 1."""
        position = position & (self._positions - 1)
        found = self._bytes.gather(-1, (position >> 3).unsqueeze(-1)).squeeze(-1)
        return (found >> (position & 7).to(torch.uint8)) & 1

    def between(self, public: Tensor, low: int, high: int) -> Tensor:
        """A share of [low <= (public - h) mod N < high], uint8; 0 <= low < high <= N and high - low < N."""
        first, last = (public - high) & (self._positions - 1), (public - low) & (self._positions - 1)
        found = self.at(last) ^ self.at(first)
        return found ^ (last < first) if self._rank == 0 else found


def spread(flips: Tensor) -> Tensor:
    """Opened bits as masks for `choose`: int64, all ones where a bit is set, 0 where it is clear."""
    return flips.to(torch.int64).neg_()


def choose(masks: Tensor, if_set: Tensor, if_clear: Tensor) -> Tensor:
    """`if_set` where the bit of `masks` (see `spread`) is set, `if_clear` elsewhere; int64.

    No branches: opened bits are uniform, so `torch.where` would mispredict every other word.
    """
    return (if_set ^ if_clear).bitwise_and_(masks).bitwise_xor_(if_clear)


def open_bits(party: Party, randomness: Tuple, shares: list[Tensor]) -> SecretProtocol[list[Tensor]]:
    """Open XOR shares of bits, each under a mask bit of its own: the parties learn bit xor mask.

    Cost: one bit an element, one round. The dealer draws the masks by `mask(shape, 1)`, in order.
    """
    masks = [randomness.mask(tuple(share.shape), 1) for share in shares]
    opened = yield [randomness.open(share, mask) for share, mask in zip(shares, masks, strict=True)]
    return opened
