# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Rows in an order that neither party knows.

The dealer draws a permutation P and shares it, with P A for a mask A of the rows. The parties open E = X + A and get
[P X] = [P] E - [P A]. Several tensors can follow one permutation, each opened when it is ready, and the share of P is
a secret like any other: a product with its transpose puts rows back (`Matmul`).

Who sees what: both parties see E, uniform because A is, and fresh shares of P and of P A. The dealer knows P, and sees
no row, no opening and no order that is revealed later.
Cost: K bits an element, one round. Dealer: K bits an element, and B^2 words of the widest ring.

Reference:
    Chase, Ghosh and Poburinnaya, Secret-shared shuffle, 2020 (for the function); Fisher and Yates 1938 (for P).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ring.matmul import ring_matmul
from ..ring.words import reduce
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .party import Party
from .secret import Secret


@dataclass(frozen=True)
class Shuffle(Gate):
    """P X for several X of B rows.

    Args:
        rows (`int`): B.
        tensors (`tuple[tuple[int, int], ...]`): Columns of every tensor, and its ring; 1 for bits that are XOR-shared.
        order_width (`int`): Least ring of the share of P, for a later product with `Shuffled.order`.
    """

    rows: int
    tensors: tuple[tuple[int, int], ...]
    order_width: int = 1

    @property
    def width(self) -> int:
        """Ring of the share of P: the widest of all."""
        return max(self.order_width, *(width for _, width in self.tensors))

    def deal(self, dealing: Dealing) -> None:
        order = dealing.permutation(self.rows).to(dealing.device)
        dealing.give(torch.nn.functional.one_hot(order, self.rows), self.width)
        for columns, width in self.tensors:
            dealing.give(dealing.mask((self.rows, columns), width)[order], width)

    def start(self, party: Party) -> Shuffled:
        """Take the tuple; each tensor can then be opened when it is ready."""
        return Shuffled(self, party, party.take(self))


class Shuffled:
    """A shuffle under way at one party: start it, then open each tensor once, in any order.

    Example:
        ```python
        shuffled = gate.start(party)
        moved = yield from shuffled.open(0, words)
        ```

    Args:
        gate (`Shuffle`): The gate.
        party (`Party`): The party.
        randomness (`Tuple`): Tuple of the gate.
    """

    def __init__(self, gate: Shuffle, party: Party, randomness: Tuple):
        self._gate, self._party, self._randomness = gate, party, randomness
        self._order = randomness.word((gate.rows, gate.rows), gate.width).to(torch.int64)
        shapes = [((gate.rows, columns), width) for columns, width in gate.tensors]
        self._masks = [(randomness.mask(*shape), randomness.word(*shape)) for shape in shapes]

    @property
    def order(self) -> Secret:
        """A share of P, (B, B): row i of the result is row j of the input where P is 1 at (i, j)."""
        return self._party.secret(self._order, self._gate.width, 0, 0)

    def open(self, index: int, words: Tensor) -> SecretProtocol[Tensor]:
        """Open one tensor.

        Args:
            index (`int`): Position of the tensor in the gate's `tensors`.
            words (`torch.Tensor`): This party's share, (B, ...): int64, or uint8 for XOR shares of bits.

        Returns:
            `torch.Tensor`: A share of the rows in the new order, of the same shape and dtype.
        """
        width = self._gate.tensors[index][1]
        mask, permuted = self._masks[index]
        (opened,) = yield [self._randomness.open(words.reshape(self._gate.rows, -1), mask)]
        moved = ring_matmul(self._order, opened.to(torch.int64), width).sub_(permuted.to(torch.int64))
        # Mod 2 a difference is an XOR.
        return (reduce(moved, 1).to(torch.uint8) if width == 1 else moved).view(words.shape)
