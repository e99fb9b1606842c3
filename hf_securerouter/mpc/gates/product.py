# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The elementwise product of two secret tensors, such as the two halves of a gated feed-forward layer.

It is `RowScale` with a scalar for every element: both factors are lifted, so each is opened in the ring of its own
values, however wide the ring of the product is.

Who sees what: c of x and c of y, each uniform under a mask of its own.
Cost: k + k' bits an element, in one round, or in two if x and y are opened apart.
Dealer: 8 K - 4 k - 4 k' bits an element, and k + k' - K more where K is less than k + k'.
"""

from __future__ import annotations

from dataclasses import dataclass

from .gate import SecretProtocol, together
from .party import Party
from .row_scale import RowScale
from .secret import Secret


@dataclass(frozen=True)
class Product(RowScale):
    """x * y, elementwise.

    Args:
        shape (`tuple[int, ...]`): Shape of x and of y.
        bits (`int`): k, the ring in which x is opened; |x| < 2^(k-2) as an integer.
        scalar_bits (`int`): k', the same for y.
        width (`int`): K, the ring of the product.
    """

    @property
    def scalar_shape(self) -> tuple[int, ...]:
        return self.shape

    def run(self, party: Party, x: Secret, y: Secret) -> SecretProtocol[Secret]:
        """Open both factors in one round and multiply.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `shape`, in a ring of at least k bits.
            y (`Secret`): Of shape `shape`, in a ring of at least k' bits.

        Returns:
            `Secret`: In Z_2^K at the sum of the scales; its bound is the sum of the bounds.
        """
        factors = self.start(party)
        yield from together(factors.open_rows(x), factors.open_scalar(y))
        return factors.product(x.bound + y.bound)
