# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Opening a bounded value so that it can be used in any ring.

For |x| < 2^(k-2) open c = x + 2^(k-2) + r mod 2^k. The sum wrapped exactly when the top bit t of r is 1 and the top
bit of c is 0. So, over the integers and hence in every ring,

    x = C - r + wrap * t * 2^k,   C = c - 2^(k-2) and wrap = 1 - (top bit of c) public.

The dealer knows r and t, but not wrap. The parties hold shares of r and t and of the products of r and t with other
values that the dealer knows, and combine these shares with public factors. A product of two lifted values is local.

Who sees what: both parties see c, uniform because r is. r is opened nowhere else.
Cost: k bits an element, one round. Dealer: K - k bits for r mod 2^K, K - k for t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gate import Dealing, Opening, Tuple
from .lifted_range import LiftedRange, deal_lifted_range
from .secret import Secret


@dataclass
class LiftMask:
    """The dealer's view of a lift: r and its top bit.

    Args:
        mask (`torch.Tensor`): r, int64 in [0, 2^k).
        top (`torch.Tensor`): t, int64 0 or 1.
    """

    mask: Tensor
    top: Tensor

    def give_products(self, dealing: Dealing, factor: Tensor, bits: int, width: int) -> None:
        """Share factor * r mod 2^`width` and factor * t mod 2^(`width` - k); `factor` broadcasts."""
        dealing.give(factor * self.mask, width)
        dealing.give(factor * self.top, width - bits)


def deal_lift(dealing: Dealing, shape: tuple[int, ...], bits: int, width: int) -> LiftMask:
    """Deal the mask of a lift: opened in Z_2^`bits`, used in Z_2^`width`."""
    mask = dealing.lift_mask(shape, bits, width)
    top = mask >> (bits - 1)
    dealing.give(top, width - bits)
    deal_lifted_range(dealing, mask, bits)
    return LiftMask(mask, top)


class Opened:
    """The public part of a lift: `centre`, C, and `wrap`, w = wrap * 2^k.

    Args:
        value (`torch.Tensor`): c, in [0, 2^k).
        bits (`int`): k.
    """

    def __init__(self, value: Tensor, bits: int):
        self.centre = value - (1 << (bits - 2))
        self.wrap = (1 - (value >> (bits - 1))) << bits


class Lift:
    """A party's side of a lift: construct it, yield `opening`, call `opened`, then `value` or `times`.

    The constructor and `products` read the tuple, at the places where the gate's `deal` called `deal_lift` and
    `give_products`.

    Example:
        ```python
        lift = Lift(randomness, shape, bits, width)
        (opened,) = yield [lift.opening(x)]
        lift.opened(opened)  # sets `centre` and `wrap`, which `value` and `times` use
        ```

    Args:
        randomness (`Tuple`): Tuple of the gate that lifts.
        shape (`tuple[int, ...]`): Shape of the value.
        bits (`int`): k, the ring of the opening; |x| < 2^(k-2) as an integer.
        width (`int`): K, the widest ring in which the value is used.
    """

    def __init__(self, randomness: Tuple, shape: tuple[int, ...], bits: int, width: int):
        self.bits, self.width, self.rank = bits, width, randomness.rank
        self._randomness = randomness
        self._pad, self.mask = randomness.lift_mask(shape, bits, width)
        self.top = randomness.word(shape, width - bits).to(torch.int64)
        self._range = LiftedRange(randomness, shape, bits)

    def products(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Shares of factor * r and of factor * t, as `LiftMask.give_products` shared them."""
        with_mask = self._randomness.word(shape, self.width)
        return with_mask, self._randomness.word(shape, self.width - self.bits).to(torch.int64)

    def opening(self, secret: Secret) -> Opening:
        """The opening of c: k bits an element."""
        return self._randomness.open(secret.narrow(self.bits).add_public(1 << (self.bits - 2)).words, self._pad)

    def opened(self, value: Tensor) -> None:
        """Set `centre` and `wrap` from the opened c, int64 in [0, 2^k)."""
        public = Opened(value, self.bits)
        self.centre, self.wrap = public.centre, public.wrap
        self._range.note(value)

    def value(self) -> Tensor:
        """A share of x mod 2^K, int64."""
        share = torch.mul(self.wrap, self.top).sub_(self.mask)
        return share.add_(self.centre) if self.rank == 0 else share

    def times(self, factor: Tensor, products: tuple[Tensor, Tensor]) -> Tensor:
        """A share of factor * x mod 2^K, from a share of the factor and of its products with r and t."""
        with_mask, with_top = products
        return torch.mul(self.wrap, with_top).sub_(with_mask).add_(self.centre * factor)


def squared(public: Lift | Opened, mask: Tensor, top: Tensor, top_mask: Tensor) -> Tensor:
    """The part of x^2 that shares of r, t and t r make: w (2 C + w) t - 2 w t r - 2 C r.

    With r^2 and C^2 it is (C - r + w t)^2, since t^2 = t. `top_mask` is needed mod 2^(K - k - 1) only.
    """
    words = (top * (2 * public.centre + public.wrap)).sub_(top_mask.to(torch.int64), alpha=2).mul_(public.wrap)
    return words.addcmul_(public.centre, mask, value=-2)
