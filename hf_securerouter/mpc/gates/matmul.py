# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The product of two secret matrices, by a matrix triple.

With masks A, B and shares of A.B, open E = x + A and F = y + B; then x y = E F - E B - A F + A B.

Who sees what: both parties see E and F, uniform because A and B are.
Cost: K bits an element of x and of y, in one round, or in two if x and y are opened apart.
Dealer: K bits an output.

Reference:
    Beaver 1991, for matrices as in Mohassel and Zhang, SecureML, 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..ring.matmul import ring_matmul
from .gate import Dealing, Gate, SecretProtocol, Tuple, together
from .party import Party
from .secret import Secret


@dataclass(frozen=True)
class Matmul(Gate):
    """x @ y, batched over leading dimensions.

    Args:
        left (`tuple[int, ...]`): Shape of x, (..., n, m).
        right (`tuple[int, ...]`): Shape of y, (..., m, p).
        width (`int`): K, the ring of both openings and of the product.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    width: int

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of the product."""
        return (*self.left[:-1], self.right[-1])

    def deal(self, dealing: Dealing) -> None:
        left, right = dealing.mask(self.left, self.width), dealing.mask(self.right, self.width)
        product = ring_matmul(self.arranged_left(left), self.arranged_right(right), self.width)
        dealing.give(product, self.width)

    def arranged_left(self, words: Tensor) -> Tensor:
        """The left operand as it is multiplied: the same words, at public places."""
        return words

    def arranged_right(self, words: Tensor) -> Tensor:
        """The right operand as it is multiplied."""
        return words

    def start(self, party: Party) -> Operands:
        """Take the tuple; each operand can then be opened when it is ready."""
        return Operands(self, party.take(self))

    def run(self, party: Party, x: Secret, y: Secret) -> SecretProtocol[Secret]:
        """Open both operands in one round and multiply.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `left`, in a ring of at least K bits.
            y (`Secret`): Of shape `right`, in a ring of at least K bits.

        Returns:
            `Secret`: Shape `result`, in Z_2^K at scale x.scale + y.scale; the bound is x's.
        """
        operands = self.start(party)
        yield from together(operands.open_left(x), operands.open_right(y))
        return operands.product(x.bound)


class Operands:
    """A matrix product under way at one party: start it, open both operands, in either order, then call `product`.

    Example:
        ```python
        operands = gate.start(party)
        yield from together(operands.open_left(x), operands.open_right(y))  # or one after the other
        result = operands.product(bound)
        ```
    """

    def __init__(self, gate: Matmul, randomness: Tuple):
        self._gate, self._randomness = gate, randomness
        self._left_mask = randomness.mask(gate.left, gate.width)
        self._right_mask = randomness.mask(gate.right, gate.width)
        self._product = randomness.word(gate.result, gate.width)
        self._left: Tensor
        self._right: Tensor

    def open_left(self, x: Secret) -> SecretProtocol[None]:
        """Open x: K bits an element, one round."""
        self._left_scale, self._rank = x.scale, x.rank
        (self._left,) = yield [self._randomness.open(x.narrow(self._gate.width).words, self._left_mask)]

    def open_right(self, y: Secret) -> SecretProtocol[None]:
        """Open y: K bits an element, one round."""
        self._right_scale = y.scale
        (self._right,) = yield [self._randomness.open(y.narrow(self._gate.width).words, self._right_mask)]

    def product(self, bound: int) -> Secret:
        """A share of x y in Z_2^K at the sum of the scales. Local, once both operands are open."""
        # P0's E F - E B0 is one matmul: E (F - B0).
        right = -self._right_mask.words if self._rank else self._right - self._right_mask.words
        gate, width = self._gate, self._gate.width
        opened, masked = gate.arranged_left(self._left), gate.arranged_left(self._left_mask.words)
        words = ring_matmul(opened, gate.arranged_right(right), width)
        words.sub_(ring_matmul(masked, gate.arranged_right(self._right), width))
        return Secret(words.add_(self._product), width, self._left_scale + self._right_scale, bound, self._rank)
