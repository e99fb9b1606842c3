# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A function of one value a row over many orders of magnitude: 1/x and 1/sqrt(x).

The range is cut into windows, each 8 times as high as the one below. Every window reads its own table off the same
opening c = x + r: with n the coarse index of x in the window's bins and phi the signed rest, x = n w + phi exactly, so
a quadratic in phi with coefficients by n is a public combination of the dealer's one-hots of r times powers of its low
bits. A table T_j gives a wrong result outside its window, but it cancels: with L_j = [x below window j's upper end],

    f(x) = T_last + sum_j L_j (T_j - T_(j+1)),

exactly as a sum of shares. Between half the end and the end L_j may be 0 or 1, since both tables are valid there. L_j
is whether the high bits of c equal those of r or of r + 1: up to three look-ups each, opened under mask bits together
with the differences T_j - T_(j+1) under masks of their own, and combined with the dealer's products of those masks.

Who sees what: c is uniform because r is; bits and differences are opened under masks of their own.
Cost: k bits, then the width of the result and 2 to 6 bits for each window but one; 2 rounds.
Dealer: 384 words a window, and look-ups, 12 KB from 2^-6 to 2^9: for rows only.
Error: relative 2e-4 for 1/sqrt(x), 5.2e-4 for 1/x at the lower edge of a window, plus the result's rounding.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...errors import SecureRouterValueError
from ..ring.words import checked_width, reduce
from .bits import Thermometer, deal_thermometer
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .party import Party
from .secret import Secret


_BIN_BITS, _RATIO_BITS, _REST_BITS, _DEGREE = 7, 3, 11, 2
_BINS = 1 << _BIN_BITS
_ONE_LOOKUP, _LOOKUP_BITS = 12, 14  # bits that one look-up compares alone, and that each of several compares at most

_FUNCTIONS = {"reciprocal": lambda x: 1 / x, "inverse_sqrt": lambda x: 1 / np.sqrt(x)}


@lru_cache(maxsize=64)
def _coefficients(function: str, first: int, unit: float) -> Tensor:
    """Quadratics a + b phi + c phi^2, phi in bins, for the bins n = (p - v) mod 128: float64 (3, p, v).

    Args:
        function (`str`): Name of the function.
        first (`int`): Lowest bin that is ever used; the bins below it repeat its quadratic.
        unit (`float`): Width of a bin.
    """
    nodes = np.cos(np.pi * (np.arange(12) + 0.5) / 12)
    centres = np.maximum(np.arange(_BINS), first)
    values = _FUNCTIONS[function]((centres[:, None] + np.maximum(nodes, -0.5 * first)) * unit)
    # The ratio of quadratic and function is fitted to 1: in the lowest bins the function falls within a bin, and the
    # relative error of a fit to the function itself is 7 % larger.
    powers = np.polynomial.polynomial.polyvander(nodes, _DEGREE)
    rows = np.stack([np.linalg.lstsq(powers / row[:, None], np.ones(12), rcond=None)[0] for row in values], axis=1)
    shift = (np.arange(_BINS)[:, None] - np.arange(_BINS)[None, :]) % _BINS
    return torch.from_numpy(rows[:, shift])


@dataclass(frozen=True)
class RowFunction(Gate):
    """1/x or 1/sqrt(x) for x from 2^`low` up to 0.93 of 2^`high`.

    Args:
        function (`str`): `"reciprocal"` or `"inverse_sqrt"`.
        shape (`tuple[int, ...]`): Shape of x.
        scale (`int`): Fraction bits of x.
        low (`int`): log2 of the smallest x; `scale` + `low` >= 5.
        high (`int`): log2 of the largest x.
        result_scale (`int`): Fraction bits of the result.

    Raises:
        `SecureRouterValueError`: `scale` + `low` is less than 5.
    """

    function: str
    shape: tuple[int, ...]
    scale: int
    low: int
    high: int
    result_scale: int

    def __post_init__(self) -> None:
        if self.scale + self.low < 5:
            raise SecureRouterValueError(
                f"`low` must be at least {5 - self.scale} at scale {self.scale}, got {self.low}; raise the scale."
            )

    @property
    def bits(self) -> int:
        """k, the ring of the opening."""
        return self.scale + self.high

    @property
    def bound(self) -> int:
        """log2 of the largest result."""
        return -self.low if self.function == "reciprocal" else (1 - self.low) // 2

    @property
    def width(self) -> int:
        """Ring of the result."""
        return self.result_scale + self.bound + 2

    @property
    def _inner_width(self) -> int:
        return checked_width(self.width + self._guard, f"The table of `{self.function}`")

    @property
    def _guard(self) -> int:
        return _DEGREE * _REST_BITS + 2

    @property
    def _ends(self) -> list[int]:
        """log2, at scale 0, of the upper end of every window, lowest first."""
        top, bottom = self.scale + self.high, self.scale + self.low
        return list(range(top, bottom + 1, -_RATIO_BITS))[::-1]

    @staticmethod
    def _cut(end: int) -> tuple[int, int]:
        """Bits of x that the window up to 2^`end` drops, and bits of its rest phi (fewer where x has few)."""
        step = end - _BIN_BITS
        return max(0, step - _REST_BITS), min(step, _REST_BITS)

    def _blocks(self, end: int) -> list[tuple[int, int]]:
        """Lowest bit and size of the blocks into which the bits above end - 1 are cut."""
        count = self.bits - (end - 1)
        parts = 1 if count <= _ONE_LOOKUP else max(2, -(-count // _LOOKUP_BITS))
        starts = [count * part // parts for part in range(parts + 1)]
        return [(end - 1 + start, stop - start) for start, stop in itertools.pairwise(starts)]

    def deal(self, dealing: Dealing) -> None:
        mask = dealing.mask(self.shape, self.bits).to(torch.int64)
        for drop, rest in map(self._cut, self._ends):
            digits = mask >> drop
            bins = (digits >> rest) & (_BINS - 1)
            low = (digits & ((1 << rest) - 1)) << (_REST_BITS - rest)
            one_hot = torch.nn.functional.one_hot(bins, _BINS)
            words = torch.stack([one_hot * (low**power).unsqueeze(-1) for power in range(_DEGREE + 1)])
            dealing.give(words, self._inner_width)
        for end in self._ends[:-1]:
            blocks = self._blocks(end)
            for base in (mask >> (end - 1), (mask >> (end - 1)) + 1):
                for at, size in blocks:
                    part = (base >> (at - end + 1)) & ((1 << size) - 1)
                    deal_thermometer(dealing, part, max(8, 1 << size))
        for end in self._ends[:-1]:
            factors = len(self._blocks(end))
            difference = dealing.mask(self.shape, self.width)
            for _ in range(2):
                bits = [dealing.mask(self.shape, 1).to(torch.int64) for _ in range(factors)]
                for subset in _subsets(factors)[1:]:
                    product = _product([bits[factor] for factor in subset])
                    dealing.give(product, self.width)
                    dealing.give(product * difference, self.width)

    def _table(self, party: Party, opened: Tensor, words: Tensor, end: int) -> Tensor:
        """A share of the table of the window up to 2^`end`, in Z_2^width."""
        drop, rest = self._cut(end)
        # The bit L of the window below is inexact by a factor of 2, and its threshold is moved down by two bins.
        first = (_BINS >> (_RATIO_BITS + 1)) - 1 if end != self._ends[0] else max(1, 1 << (self._low_bin(end)))
        digits = opened >> drop
        bins, low = (digits >> rest) & (_BINS - 1), digits & ((1 << rest) - 1)
        coefficients = party.constant(_coefficients(self.function, first, 2.0 ** (end - _BIN_BITS - self.scale)))
        constant, slope, curve = (
            row.index_select(0, bins.reshape(-1)).view(*self.shape, _BINS) for row in coefficients
        )
        # phi = (low - h) / 2^rest for the mask's low bits h, whose powers the words hold in units of 2^-_REST_BITS.
        low = (low.to(torch.float64) * 2.0**-rest).unsqueeze(-1)
        one = 2.0 ** (self.result_scale + self._guard)
        factors = (
            (curve * low).add_(slope).mul_(low).add_(constant).mul_(one),
            (curve * low).mul_(2).add_(slope).mul_(-one * 2.0**-_REST_BITS),
            curve * (one * 2.0 ** (-2 * _REST_BITS)),
        )
        total = torch.zeros(self.shape, dtype=torch.int64, device=words.device)
        for power, factor in enumerate(factors):
            total += factor.round_().to(torch.int64).mul_(words[power]).sum(-1)
        secret = party.secret(total, self._inner_width, self.result_scale + self._guard, self.bound)
        return secret.truncate(self.result_scale).words

    def _low_bin(self, end: int) -> int:
        """log2 of the bin that holds 2^`low` in the lowest window."""
        return max(0, self.scale + self.low - (end - _BIN_BITS))

    def run(self, party: Party, x: Secret) -> SecretProtocol[Secret]:
        """Open x, read all tables, open bits and differences masked, combine.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `shape` at `scale`, in a ring of at least k bits.

        Returns:
            `Secret`: In Z_2^`width` at `result_scale`, bound `bound`.
        """
        randomness = party.take(self)
        mask = randomness.mask(self.shape, self.bits)
        tables = [randomness.word((_DEGREE + 1, *self.shape, _BINS), self._inner_width) for _ in self._ends]
        equal = [
            [
                [Thermometer(randomness, self.shape, max(8, 1 << size)) for _, size in self._blocks(end)]
                for _ in range(2)
            ]
            for end in self._ends[:-1]
        ]
        (opened,) = yield [randomness.open(x.narrow(self.bits).words, mask)]
        opened = opened.to(torch.int64)
        values = [self._table(party, opened, words, end) for words, end in zip(tables, self._ends, strict=True)]
        openings, hidden = [], []
        for index, end in enumerate(self._ends[:-1]):
            difference = values[index] - values[index + 1]
            # The threshold is two bins below the end, so that no x under the threshold wraps around the table.
            high = opened + (2 << (end - _BIN_BITS))
            openings.append(randomness.open(difference, randomness.mask(self.shape, self.width)))
            for alternative in equal[index]:
                for (at, size), thermometer in zip(self._blocks(end), alternative, strict=True):
                    part = (high >> at) & ((1 << size) - 1)
                    under = thermometer.at(part - 1) & (part > 0).to(torch.uint8)
                    openings.append(randomness.open(thermometer.at(part) ^ under, randomness.mask(self.shape, 1)))
                hidden.append(self._products(randomness, len(alternative)))
        revealed = iter((yield openings) if openings else [])  # one window needs no second round
        result, shares = values[-1], iter(hidden)
        for index, end in enumerate(self._ends[:-1]):
            difference, masked = values[index] - values[index + 1], next(revealed)
            for _ in range(2):
                flips = [next(revealed).to(torch.int64) for _ in self._blocks(end)]
                result = result + self._times_and(difference, masked, flips, next(shares))
        return party.secret(reduce(result, self.width), self.width, self.result_scale, self.bound)

    def _products(self, randomness: Tuple, factors: int) -> list[tuple[Tensor, Tensor]]:
        return [
            (randomness.word(self.shape, self.width), randomness.word(self.shape, self.width))
            for _ in _subsets(factors)[1:]
        ]

    @staticmethod
    def _times_and(
        difference: Tensor, masked: Tensor, flips: list[Tensor], products: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """A share of (AND of the bits) * difference, from the bits xor masks and the difference plus its mask."""
        # bit = flip + (1 - 2 flip) * mask bit; mask bits times the difference are masked * m - [m * mask].
        hidden = [difference, *(masked * bit - product for bit, product in products)]
        total = torch.zeros_like(difference)
        for subset, part in zip(_subsets(len(flips)), hidden, strict=True):
            signs = [1 - 2 * flip if factor in subset else flip for factor, flip in enumerate(flips)]
            total += _product(signs) * part
        return total


def _subsets(count: int) -> list[list[int]]:
    """All subsets of `count` factors, the empty one first."""
    return [[factor for factor in range(count) if chosen >> factor & 1] for chosen in range(1 << count)]


def _product(factors: list[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, factors)
