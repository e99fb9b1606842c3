# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""From XOR shares of a bit to additive shares of 0 or 1.

Who sees what: u xor b, uniform because b is a fresh mask bit. Cost: one bit an element, one round; dealer K bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import open_bits
from .gate import Dealing, Gate, SecretProtocol
from .party import Party
from .secret import Secret


@dataclass(frozen=True)
class BitToRing(Gate):
    """Additive shares in Z_2^K of a bit u.

    Args:
        shape (`tuple[int, ...]`): Shape of the bits.
        width (`int`): K.
    """

    shape: tuple[int, ...]
    width: int

    def deal(self, dealing: Dealing) -> None:
        dealing.give(dealing.mask(self.shape, 1).to(torch.int64), self.width)

    def run(self, party: Party, bits: Tensor) -> SecretProtocol[Secret]:
        """Open the bits under mask bits.

        Args:
            party (`Party`): The party.
            bits (`torch.Tensor`): XOR share, uint8.

        Returns:
            `Secret`: 0 or 1 in Z_2^K, at scale 0.
        """
        randomness = party.take(self)
        (flips,) = yield from open_bits(party, randomness, [bits])
        hidden = randomness.word(self.shape, self.width).to(torch.int64)
        one = int(party.rank == 0)
        return party.secret(torch.where(flips.bool(), one - hidden, hidden), self.width, 0, 0)
