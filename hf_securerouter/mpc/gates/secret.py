# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`Secret`: one party's additive share of a tensor, in a ring that shrinks.

Truncating by t bits is local, and leaves a sharing of x / 2^t in Z_2^(width - t) that is within one unit in the last
place, unbiased, whatever x is. Read in the old ring, the same shares would sometimes be wrong by 2^(width - t), so
`truncate` always shrinks the ring. A nonlinear gate can return its result in any ring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...errors import SecureRouterError
from ..ring.words import checked_width


@dataclass(frozen=True)
class Secret:
    """One party's share of a fixed-point tensor.

    Args:
        words (`torch.Tensor`): int64, any shape. Only the residues mod 2^`width` are shares; higher bits are noise.
        width (`int`): The shares add up to the secret in Z_2^`width`.
        scale (`int`): Fraction bits: the secret stands for its integer times 2^-`scale`.
        bound (`int`): The secret's absolute value stays below 2^`bound`; public, and promised by the caller.
        rank (`int`): 0 or 1, the party that holds the share. Public constants are added by rank 0.

    Raises:
        `RingWidthError`: `width` is not from 1 to 64.

    Reference:
        Truncation in a shrinking ring: shares x0 + x1 = x mod 2^k give -((-x0) >> t) + (x1 >> t) = x / 2^t + e mod
        2^(k-t) with |e| < 1, because both shifts drop multiples of 2^(k-t) only.
    """

    words: Tensor
    width: int
    scale: int
    bound: int
    rank: int

    def __post_init__(self) -> None:
        checked_width(self.width, "A secret tensor")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.words.shape)

    @property
    def value_bits(self) -> int:
        """Bits of an integer that holds the value, its sign and one unit of slack: `scale` + `bound` + 2."""
        return self.scale + self.bound + 2

    def truncate(self, scale: int) -> Secret:
        """The same value at fewer fraction bits, in a ring smaller by as many bits. Local; off by less than one unit.

        Raises:
            `SecureRouterError`: `scale` is larger than the secret's scale.
        """
        drop = self.scale - scale
        if drop < 0:
            raise SecureRouterError(f"Cannot truncate from scale {self.scale} up to {scale}.")
        if drop == 0:
            return self
        words = -((-self.words) >> drop) if self.rank == 0 else self.words >> drop
        return replace(self, words=words, width=self.width - drop, scale=scale)

    def narrow(self, width: int) -> Secret:
        """The same secret in a smaller ring. Local and exact.

        Raises:
            `SecureRouterError`: `width` is larger than the secret's ring.
        """
        if width > self.width:
            raise SecureRouterError(f"A share in a ring of {self.width} bits cannot be read in one of {width}.")
        return replace(self, width=width)

    def upscale(self, scale: int) -> Secret:
        """The same value at more fraction bits, in a ring wider by as many bits. Local and exact.

        Raises:
            `SecureRouterError`: `scale` is smaller than the secret's scale.
        """
        rise = scale - self.scale
        if rise < 0:
            raise SecureRouterError(f"Cannot upscale from scale {self.scale} down to {scale}.")
        return replace(self, words=self.words << rise, width=self.width + rise, scale=scale)

    def with_bound(self, bound: int) -> Secret:
        """The same secret with another promised bound."""
        return replace(self, bound=bound)

    def map(self, function: Any, **changes: Any) -> Secret:
        """Apply a rearrangement (view, index, transpose, ...) to the words."""
        return replace(self, words=function(self.words), **changes)

    def __add__(self, other: Secret) -> Secret:
        if self.scale != other.scale:
            raise SecureRouterError(f"Sum of secrets of scales {self.scale} and {other.scale}; truncate one first.")
        return replace(
            self,
            words=self.words + other.words,
            width=min(self.width, other.width),
            bound=max(self.bound, other.bound) + 1,
        )

    def __neg__(self) -> Secret:
        return replace(self, words=-self.words)

    def __sub__(self, other: Secret) -> Secret:
        return self + (-other)

    def add_public(self, integer: Tensor | int) -> Secret:
        """Add a public integer at the secret's scale."""
        return replace(self, words=self.words + integer) if self.rank == 0 else self

    def times_public(self, integer: Tensor | int) -> Secret:
        """Multiply by a public integer (of scale 0); the caller must update the bound."""
        return replace(self, words=self.words * integer)
