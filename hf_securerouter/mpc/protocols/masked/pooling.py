# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The mean of the tokens' rows of each input, without padding, under a secret attention mask.

The mask is a matrix of one row, whose product with an input's rows is the sum of its tokens' rows; the sum is then
multiplied by the reciprocal of the number of tokens. Mask and number depend on nothing but the input, so they are made
beside the layers of an encoder: behind them the mean costs two rounds.

Who sees what: openings of gates only, of the mask's bits, the number, the rows, the sum and the reciprocal, each under
a mask of its own. The number of tokens stays secret.
Cost behind the layers: `row_width` bits an element of the rows, and some 50 bits an element of the mean.
Error: relative 5e-4, of the reciprocal.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...gates.bit_to_ring import BitToRing
from ...gates.gate import SecretProtocol, together
from ...gates.matmul import Matmul
from ...gates.party import Party
from ...gates.row_function import RowFunction
from ...gates.row_scale import RowScale
from ...gates.secret import Secret
from ...ring.words import checked_width


_COUNT_SCALE = 6  # the least scale at which `RowFunction` reads a number of half a token
_INVERSE_BITS = 14  # at least so many significant bits of a reciprocal


@dataclass(frozen=True)
class Tokens:
    """Which rows of a batch are tokens, and the reciprocals of their numbers.

    Args:
        mask (`Secret`): (B, 1, T), 1 for tokens and 0 for padding, at scale 0.
        inverse (`Secret`): (B, 1).
    """

    mask: Secret
    inverse: Secret


@dataclass(frozen=True)
class MeanPooling:
    """The mean of the tokens' rows, for inputs of one length. Each input has at least one token.

    Args:
        length (`int`): T, the rows of an input.
        scale (`int`): Fraction bits of the rows and of the mean.
        bound (`int`): log2 bound of the rows' values.
        width (`int`): Ring of the mean.
    """

    length: int
    scale: int
    bound: int
    width: int

    @property
    def row_width(self) -> int:
        """Ring in which rows are opened, which holds their sum."""
        return self.scale + self.sum_bound + 2

    @property
    def sum_bound(self) -> int:
        """log2 bound of a sum of all rows."""
        return self.bound + (self.length - 1).bit_length()

    @property
    def inverse_scale(self) -> int:
        """Fraction bits of the reciprocal of the number of tokens."""
        return _INVERSE_BITS + self.length.bit_length()

    def check(self) -> None:
        """Raise an error if a ring does not fit into 64 bits.

        Raises:
            `SecureRouterValueError`: The rows, or the product of sum and reciprocal, do not fit.
        """
        checked_width(self.row_width, "The pooling of the tokens' rows (max_length)")
        checked_width(self.width + self.inverse_scale, "The mean of the tokens' rows")

    def count(self, party: Party, is_token: Tensor) -> SecretProtocol[Tokens]:
        """Make what `run` needs of the attention mask: 3 rounds.

        Args:
            party (`Party`): The party.
            is_token (`torch.Tensor`): XOR share of the attention mask, uint8 (B, T).
        """
        batch, length = is_token.shape
        mask = yield from BitToRing((batch, 1, length), self.row_width).run(party, is_token.view(batch, 1, length))
        number = mask.map(lambda words: words.sum(-1)).upscale(_COUNT_SCALE)
        gate = RowFunction(
            "reciprocal",
            number.shape,
            scale=_COUNT_SCALE,
            low=-1,  # the reciprocal of one token is 1, and has to stay below the bound
            high=max(2, (length * 10 // 9).bit_length()),  # the gate reads numbers up to 0.93 of 2^high, from 2 on
            result_scale=self.inverse_scale,
        )
        inverse = yield from gate.run(party, number.narrow(gate.bits))
        return Tokens(mask, inverse)

    def run(self, party: Party, rows: Secret, tokens: Tokens) -> SecretProtocol[Secret]:
        """The mean of the tokens' rows: 2 rounds.

        Args:
            party (`Party`): The party.
            rows (`Secret`): (B, T, H) at `scale`, in a ring of at least `row_width` bits.
            tokens (`Tokens`): From `count`.

        Returns:
            `Secret`: (B, H) at `scale` in Z_2^`width`.
        """
        multiply = Matmul(tokens.mask.shape, rows.shape, self.row_width)
        product = yield from multiply.run(party, tokens.mask, rows)
        total = product.map(lambda words: words[:, 0]).with_bound(self.sum_bound)
        divide = RowScale(
            total.shape,
            bits=total.value_bits,
            scalar_bits=tokens.inverse.value_bits,
            width=self.width + self.inverse_scale,
        ).start(party)
        yield from together(divide.open_rows(total), divide.open_scalar(tokens.inverse))
        return divide.product(self.bound).truncate(self.scale)
