# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One of several secret tensors, chosen by secret bits.

With s = f xor b, f opened, a selected value is s x = (f + (1 - 2 f) b) (E - r), E = x + r opened: shares of b, r and
b r make it local. The sum over all candidates is the chosen one where the bits are a one-hot.

Who sees what: both parties see f and E, uniform because b and r are fresh.
Cost: K bits an element of every candidate and one bit a row and candidate, one round. Dealer: K bits for each of these
elements and bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gate import Dealing, Gate, SecretProtocol
from .party import Party
from .secret import Secret


@dataclass(frozen=True)
class Select(Gate):
    """The sum over k of s_k x_k, row by row.

    Args:
        candidates (`int`): Number of tensors to choose from.
        rows (`int`): B.
        columns (`int`): Elements of a row.
        width (`int`): K, the ring of the candidates and of the result.
    """

    candidates: int
    rows: int
    columns: int
    width: int

    def deal(self, dealing: Dealing) -> None:
        bit = dealing.mask((self.candidates, self.rows), 1).to(torch.int64)
        mask = dealing.mask((self.candidates, self.rows, self.columns), self.width)
        dealing.give(bit, self.width)
        dealing.give(bit[..., None] * mask, self.width)

    def run(self, party: Party, bits: Tensor, candidates: Secret) -> SecretProtocol[Secret]:
        """Open the bits and the candidates, and add up.

        Args:
            party (`Party`): The party.
            bits (`torch.Tensor`): XOR shares of the one-hot, uint8 (candidates, B).
            candidates (`Secret`): (candidates, B, columns), in a ring of at least K bits.

        Returns:
            `Secret`: (B, columns) in Z_2^K.
        """
        randomness = party.take(self)
        hidden = randomness.mask((self.candidates, self.rows), 1)
        mask = randomness.mask((self.candidates, self.rows, self.columns), self.width)
        bit = randomness.word((self.candidates, self.rows), self.width).to(torch.int64)[..., None]
        product = randomness.word((self.candidates, self.rows, self.columns), self.width)
        words = candidates.narrow(self.width).words
        flips, opened = yield [randomness.open(bits, hidden), randomness.open(words, mask)]
        flip = flips[..., None].to(torch.int64)
        own = opened - mask.words if party.rank == 0 else -mask.words
        chosen = flip * own + (1 - 2 * flip) * (opened * bit - product)
        return party.secret(chosen.sum(0), self.width, candidates.scale, candidates.bound)
