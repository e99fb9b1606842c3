# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Activations that are curved in a window around 0 and straight outside: GeLU, SiLU and tanh.

Inside the window the function is a trigonometric polynomial of period 16, or 32 for SiLU, F(x) = a_0 + sum_j a_j
cos(j w x) + b_j sin(j w x). Of c = x + offset + r, the angle of x is that of c minus that of r, so F is a public
combination of the dealer's cos(j w r) and sin(j w r): no wrap to handle, no power of x, no scale beyond words. Two
bits, inside and right of the window, are read off the coarse index of the same opening and opened masked; the dealer
gives its words for both values of the mask bit, so selecting costs no product:

    y = inside * F(x) + right * (slope * x + height) + left * (-height).

Who sees what: c is uniform because r is; the two bits are opened under mask bits of their own.
Cost: R + q + 2 bits and 2 bits an element (2.6 B at q = 12, R = 5), 2 rounds.
Dealer: 245 B for GeLU, 345 B for tanh and 404 B for SiLU, in a ring of 38 bits.
Error: 1.2e-4 for GeLU (6 harmonics) and, from -3.75 to -3.5, where it may be cut off to 0, 8e-4; 4.5e-4 for tanh (10
harmonics); 5e-4 for SiLU (12 harmonics); plus the rounding of x to q bits. One harmonic less makes GeLU the largest
error of an encoder.

Reference:
    Select-then-compute: Zhang et al., SecMoE, 2026 (arXiv 2601.06790). Sines of a masked value from the dealer's sines
    of the mask: SecFormer (arXiv 2401.00793) and SHAFT (NDSS 2025), whose openings are not reduced mod the period.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .bits import Thermometer, choose, deal_thermometer, open_bits, spread
from .gate import Dealing, Gate, SecretProtocol
from .lift import Lift, deal_lift
from .party import Party
from .secret import Secret


_WORD_SCALE, _PUBLIC_SCALE = 15, 14
_STEP_BITS = 2  # the coarse index counts quarters of a unit


@dataclass(frozen=True)
class _Shape:
    """Curved for |x| < `half_window` quarters; slope * x + height to the right of the window, -height to the left.

    The trigonometric polynomial on the window has the coefficients a_0 = `constant`, a_j of `cosines` and b_j of
    `sines`. It is nearly minimax; `tests/mpc/gates/test_curved.py` fits it anew, and compares.
    """

    half_window: int
    slope: int
    height: int
    constant: float
    cosines: tuple[float, ...]
    sines: tuple[float, ...]
    period_bits: int = 4

    @property
    def harmonics(self) -> int:
        return len(self.sines)


_SHAPES = {
    "gelu": _Shape(
        half_window=15,
        slope=1,
        height=0,
        constant=-1.29197729122,
        cosines=(4.2284835519, -4.40081254956, 2.39053177206, -1.19527366517, 0.35144948287, -0.0822860662966),
        sines=(2.26956563285, -0.797851053558, 0.288291019709, -0.0860646615541, 0.0181753476287, -0.00202300129936),
    ),
    "silu": _Shape(
        half_window=44,
        slope=1,
        height=0,
        period_bits=5,
        constant=0.646040357459,
        cosines=(
            *(3.05429276701, -5.8303255955, 4.47479188838, -3.81943013948, 2.64855472785),
            *(-1.83815022704, 1.08178819201, -0.607326491087, 0.281416027372, -0.118421894232),
            *(0.0356386167743, -0.00865136333928),
        ),
        sines=(
            *(4.89797430841, -2.17676885975, 1.18947933427, -0.671651885051, 0.369315996549),
            *(-0.191387910046, 0.09109301088, -0.0387511648278, 0.01421652045, -0.00425334797687),
            *(0.00093362547409, -0.000114386742734),
        ),
    ),
    "tanh": _Shape(
        half_window=20,
        slope=0,
        height=1,
        constant=0.0,
        cosines=(0.0,) * 10,
        sines=(
            *(0.356593512146, 1.46308041238, -1.48487243513, 1.6571127092, -1.25307783136),
            *(0.897287720582, -0.488827822654, 0.236122110271, -0.0777463287043, 0.0197405610971),
        ),
    ),
}


def _angles(name: str, scale: int) -> np.ndarray:
    """The angle of every step of a period."""
    steps = 2 ** (scale + _SHAPES[name].period_bits)
    return np.arange(steps) * (2 * np.pi / steps)


@lru_cache(maxsize=8)
def _public_tables(name: str, scale: int) -> Tensor:
    """Public factors of the dealer's words by the angle of c, int64 (2 * harmonics, steps of a period)."""
    positions = _angles(name, scale)
    rows = []
    for j, (a, b) in enumerate(zip(_SHAPES[name].cosines, _SHAPES[name].sines, strict=True), start=1):
        rows += [a * np.cos(j * positions) + b * np.sin(j * positions)]
        rows += [a * np.sin(j * positions) - b * np.cos(j * positions)]
    return torch.from_numpy(np.round(np.stack(rows) * 2.0**_PUBLIC_SCALE).astype(np.int64))


@lru_cache(maxsize=8)
def _hidden_tables(name: str, scale: int) -> Tensor:
    """cos and sin of j times the angle of the mask r, int64 (2 * harmonics, steps of a period)."""
    positions = _angles(name, scale)
    rows = [f(j * positions) for j in range(1, _SHAPES[name].harmonics + 1) for f in (np.cos, np.sin)]
    return torch.from_numpy(np.round(np.stack(rows) * 2.0**_WORD_SCALE).astype(np.int64))


@dataclass(frozen=True)
class Activation(Gate):
    """GeLU, SiLU or tanh.

    Args:
        function (`str`): `"gelu"`, `"silu"` or `"tanh"`.
        shape (`tuple[int, ...]`): Shape of x.
        bound (`int`): R, at least 3, for SiLU at least 4; |x| < 2^R.
        scale (`int`): q, the fraction bits at which x is opened.
        result_scale (`int`): Fraction bits of the result.
        width (`int`): Ring of the result.
    """

    function: str
    shape: tuple[int, ...]
    bound: int
    scale: int
    result_scale: int
    width: int

    @property
    def bits(self) -> int:
        """k, the ring of the opening."""
        return self.scale + self.bound + 2

    @property
    def drop(self) -> int:
        """Fraction bits that the curved part is truncated by."""
        return _WORD_SCALE + _PUBLIC_SCALE - self.result_scale

    @property
    def positions(self) -> int:
        """Number of quarters in the ring of the opening."""
        return 1 << (self.bits - self.scale + _STEP_BITS)

    @property
    def input_width(self) -> int:
        """Ring that x must be shared in, at `result_scale`."""
        return self.width if _SHAPES[self.function].slope else self.bits + self.result_scale - self.scale

    def deal(self, dealing: Dealing) -> None:
        shape = _SHAPES[self.function]
        lift = deal_lift(dealing, self.shape, self.bits, self.width - (self.result_scale - self.scale))
        deal_thermometer(dealing, lift.mask >> (self.scale - _STEP_BITS), self.positions)
        inside, right = (dealing.mask(self.shape, 1).to(torch.int64) for _ in range(2))
        width = self.width + self.drop
        angle = (lift.mask & ((1 << (self.scale + shape.period_bits)) - 1)).view(-1)
        where = inside - 1, -inside  # all ones where the mask bit is 0, and where it is 1
        for table in dealing.constant(_hidden_tables(self.function, self.scale)):
            # One harmonic's words after another: all of them together take a dozen times the memory.
            words = table.index_select(0, angle).view(self.shape)
            for mask in where:
                dealing.give(words & mask, width)
        dealing.give(inside, width)
        dealing.give(right, self.width)
        if shape.slope:
            lift.give_products(dealing, right, self.bits, self.width - (self.result_scale - self.scale))

    def run(self, party: Party, x: Secret) -> SecretProtocol[Secret]:
        """Open x at q bits, read two bits off the opening, open these bits masked, combine.

        Args:
            party (`Party`): The party.
            x (`Secret`): At `result_scale`, in a ring of at least `input_width` bits.

        Returns:
            `Secret`: In Z_2^`width` at `result_scale`.

        Raises:
            `SecureRouterError`: x is shared in a smaller ring.
        """
        shape, x = _SHAPES[self.function], x.narrow(self.input_width)
        randomness = party.take(self)
        lift_width = self.width - (self.result_scale - self.scale)
        lift = Lift(randomness, self.shape, self.bits, lift_width)
        index = Thermometer(randomness, self.shape, self.positions)
        (opened,) = yield [lift.opening(x.truncate(self.scale))]
        lift.opened(opened)
        quarters, zero = opened >> (self.scale - _STEP_BITS), self.positions // 4
        edge = shape.half_window
        inside = index.between(quarters, zero - edge + 1, zero + edge)
        right = index.between(quarters, zero + edge, self.positions)
        inside_flip, right_flip = yield from open_bits(party, randomness, [inside, right])

        width = self.width + self.drop
        flip = spread(inside_flip)
        # flip = inside xor mask bit, so inside = 1 - bit where the flip is 1 (first words), and bit where it is 0.
        angle = (opened - (1 << (self.bits - 2))) & ((1 << (self.scale + shape.period_bits)) - 1)
        total, angle = torch.zeros_like(angle), angle.view(-1)
        for table in party.constant(_public_tables(self.function, self.scale)):
            if_clear, if_set = randomness.word(self.shape, width), randomness.word(self.shape, width)
            total.addcmul_(choose(flip, if_clear, if_set), table.index_select(0, angle).view(self.shape))
        hidden = randomness.word(self.shape, width)
        is_inside = choose(flip, (1 if party.rank == 0 else 0) - hidden, hidden)
        total.add_(is_inside, alpha=round(shape.constant * 2.0 ** (_WORD_SCALE + _PUBLIC_SCALE)))
        curved = party.secret(total, width, _WORD_SCALE + _PUBLIC_SCALE, x.bound).truncate(self.result_scale)

        # Straight parts: right * (slope * x + height) - left * height, left = 1 - inside - right.
        hidden_right = randomness.word(self.shape, self.width)
        flip = spread(right_flip)
        straight = curved.words
        if shape.slope:
            selected = lift.times(hidden_right, lift.products(self.shape)) << (self.result_scale - self.scale)
            straight = straight + choose(flip, x.words - selected, selected)
        if shape.height:
            one = party.rank == 0
            is_right = choose(flip, int(one) - hidden_right, hidden_right)
            straight = straight + ((2 * is_right + is_inside - int(one)) << self.result_scale)
        bound = x.bound if shape.slope else shape.height
        return party.secret(straight, self.width, self.result_scale, bound)
