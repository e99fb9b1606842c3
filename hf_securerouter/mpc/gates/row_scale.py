# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Rows times a scalar each, and their sums of squares.

Both factors are lifted (`gates/lift.py`), so the product is local once both are open: with z = C - r + w t and y = C'
- r' + w' t', it needs shares of r, t and of their products with r' and t'. The sum of the squares of a row needs
shares of r, t, t r and of one sum of r^2 a row.

Who sees what: c of z and c of y, each uniform under a mask of its own.
Cost: k bits an element of z and k' bits a row, in one round, or in two if z and y are opened apart.
Dealer: 6 K - 4 k - 2 k' bits an element, 2 K - 2 k' a row; for squares K - k - 1 and K more.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from .gate import Dealing, Gate, SecretProtocol, Tuple
from .lift import Lift, deal_lift, squared
from .party import Party
from .secret import Secret


_PARTS = ("mask", "top")


@dataclass(frozen=True)
class RowScale(Gate):
    """z * y for rows z and a secret scalar y a row.

    Args:
        shape (`tuple[int, ...]`): Shape of z; the last dimension is a row.
        bits (`int`): k, the ring in which z is opened; |z| < 2^(k-2) as an integer.
        scalar_bits (`int`): k', the same for y.
        width (`int`): K, the ring of the results.
        squares (`bool`): Whether the sums of squares of the rows are needed.
    """

    shape: tuple[int, ...]
    bits: int
    scalar_bits: int
    width: int
    squares: bool = False

    def deal(self, dealing: Dealing) -> None:
        rows = deal_lift(dealing, self.shape, self.bits, self.width)
        if self.squares:
            dealing.give(rows.top * rows.mask, self.width - self.bits - 1)
            dealing.give((rows.mask * rows.mask).sum(-1), self.width)
        scalar = deal_lift(dealing, self.scalar_shape, self.scalar_bits, self.width)
        for (factor, other), width in zip(itertools.product(_PARTS, _PARTS), self.product_widths, strict=True):
            if width > 0:
                dealing.give(getattr(scalar, factor) * getattr(rows, other), width)

    @property
    def scalar_shape(self) -> tuple[int, ...]:
        """Shape of y."""
        return (*self.shape[:-1], 1)

    @property
    def product_widths(self) -> list[int]:
        """Rings of r' r, r' t, t' r and t' t: each t has a factor 2^k, so a width may be 0 or less."""
        least = self.width - self.scalar_bits
        return [self.width, self.width - self.bits, least, least - self.bits]

    def start(self, party: Party) -> ScaledRows:
        """Take the tuple; rows and scalars can then be opened when each is ready."""
        return ScaledRows(self, party, party.take(self))


class ScaledRows:
    """A product z * y under way at one party: start it, open both factors, in either order, then call `product`.

    `sum_of_squares` may be called once z is open, if the gate has `squares`.

    Example:
        ```python
        scaled = gate.start(party)
        yield from together(scaled.open_rows(z), scaled.open_scalar(y))  # or one after the other
        result = scaled.product(bound)  # last: `product` reads the end of the tuple
        ```
    """

    def __init__(self, gate: RowScale, party: Party, randomness: Tuple):
        self._gate, self._party, self._randomness = gate, party, randomness
        self._rows = Lift(randomness, gate.shape, gate.bits, gate.width)
        if gate.squares:
            self._top_mask = randomness.word(gate.shape, gate.width - gate.bits - 1).to(self._rows.top.dtype)
            self._mask_squares = randomness.word(gate.shape[:-1], gate.width)
        self._scalar: Lift

    def open_rows(self, z: Secret) -> SecretProtocol[None]:
        """Open z: k bits an element, one round."""
        self._scale = z.scale
        (opened,) = yield [self._rows.opening(z)]
        self._rows.opened(opened)

    def sum_of_squares(self, bound: int) -> Secret:
        """A share of the sum of z^2 over each row, in Z_2^K at twice the scale of z. Local, once z is open."""
        rows = self._rows
        words = squared(rows, rows.mask, rows.top, self._top_mask)
        if self._party.rank == 0:
            words.addcmul_(rows.centre, rows.centre)
        total = words.sum(-1).add_(self._mask_squares)
        return self._party.secret(total, self._gate.width, 2 * self._scale, bound)

    def open_scalar(self, y: Secret) -> SecretProtocol[None]:
        """Open y, of shape `scalar_shape`: k' bits an element, one round."""
        gate = self._gate
        self._scalar = Lift(self._randomness, gate.scalar_shape, gate.scalar_bits, gate.width)
        self._scalar_scale = y.scale
        (opened,) = yield [self._scalar.opening(y)]
        self._scalar.opened(opened)

    def product(self, bound: int) -> Secret:
        """A share of z * y in Z_2^K at the sum of the scales. Local, once both are open."""
        gate, rows, scalar = self._gate, self._rows, self._scalar
        mask_mask, mask_top, top_mask, top_top = (
            self._randomness.word(gate.shape, width) if width > 0 else torch.zeros_like(rows.mask)
            for width in gate.product_widths
        )
        # y r = C' r - r' r + w' t' r, and the same for y t; then z y = C y - y r + w y t.
        with_mask = (rows.mask * scalar.centre).sub_(mask_mask).addcmul_(top_mask.to(torch.int64), scalar.wrap)
        with_top = (rows.top * scalar.centre).sub_(mask_top).addcmul_(top_top.to(torch.int64), scalar.wrap)
        words: Tensor = with_top.mul_(rows.wrap).sub_(with_mask).addcmul_(rows.centre, scalar.value())
        return self._party.secret(words, gate.width, self._scale + self._scalar_scale, bound)
