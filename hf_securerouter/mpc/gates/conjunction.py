# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""ANDs of secret bits: of every bit that takes part one masked bit is opened, however many ANDs read it.

Who sees what: every bit is opened under a mask bit of its own (`gates/compare.py`).
Cost: one bit an input, one round. Dealer: one bit for every product of two mask bits or more, 1 for an AND of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .compare import and_round, deal_and
from .gate import Dealing, Gate, SecretProtocol
from .party import Party


@dataclass(frozen=True)
class And(Gate):
    """The AND of some of several bits, row by row.

    Args:
        inputs (`int`): Bits of a row.
        rows (`int`): Rows.
        products (`tuple[tuple[int, ...], ...]`): The inputs of each AND, ascending, two or more.
    """

    inputs: int
    rows: int
    products: tuple[tuple[int, ...], ...]

    def deal(self, dealing: Dealing) -> None:
        deal_and(dealing, (self.rows,), self.inputs, self.products)

    def run(self, party: Party, bits: Tensor) -> SecretProtocol[Tensor]:
        """Open the bits under mask bits and combine.

        Args:
            party (`Party`): The party.
            bits (`torch.Tensor`): XOR shares, uint8 (inputs, rows).

        Returns:
            `torch.Tensor`: XOR shares of the ANDs, uint8 (products, rows).
        """
        return torch.stack((yield from and_round(party.take(self), bits, self.products)))
