# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The precisions that an expert may be computed with under encryption: fraction bits of every value that is truncated
and of every weight, and bounds on what is computed. `"full"` serves any fine-tuned encoder; `"reduced"` takes about 8
bits each for activations and weights, and narrow bounds, both of which an expert has to be trained for.

Truncation on shares rounds up or down at random, so that bits of activations are noise in the logits, while weights
are rounded once and a clear model can round them as well. Bits therefore go where noise would be largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from .errors import SecureRouterValueError


MARGIN = 1.5  # a bound is at least this many times what was seen, or what training lets values reach

# The windows of the curved activations and of the exponential have to fit into the range.
_FLOORS = {"inner": 3, "head": 3, "scores": 4}
_LOWEST = ("row_sum", "variance_low")  # bounds from below


@dataclass(frozen=True)
class Bounds:
    """log2 of what absolute values stay below. The defaults hold for real encoders with a margin; what was seen in a
    fine-tuned six-layer encoder stands behind each.

    Args:
        scores (`int`): Attention scores lie within -2^(scores-1) and 2^(scores-1) (seen: -41 to 45), and two scores
            of one row differ by less than 2^(scores-1) - 4 (seen: 76).
        value (`int`): Entries of V (seen: 6.0).
        context (`int`): What softmax divides, times V, in the mean over the length; never above the bounds of both.
        residual (`int`): Centred inputs of LayerNorm (seen: 218).
        inner (`int`): Inputs of the feed-forward activation (seen: 24).
        row_sum (`int`): Smallest sum of a row's numerators under 2Quad and 2ReLU.
        variance_low (`int`): Smallest variance in LayerNorm (seen: 0.13).
        variance_high (`int`): Largest variance in LayerNorm, up to 15/16 of the power (seen: 124).
        embedding (`int`): Embedding outputs, where they are shuffled or selected; checked by the client.
        head (`int`): Inputs of the head's activation.
        logits (`int`): Logits, and a router's scores.
    """

    scores: int = 8
    value: int = 4
    context: int = 24
    residual: int = 9
    inner: int = 6
    row_sum: int = -3
    variance_low: int = -14
    variance_high: int = 14
    embedding: int = 6
    head: int = 6
    logits: int = 6

    def narrowed(self, **calibrated: int) -> Bounds:
        """These bounds with some of them tightened; a calibration can never loosen one, nor go below what gates need.

        Raises:
            `SecureRouterValueError`: An unknown name.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in calibrated.items():
            if name not in values:
                raise SecureRouterValueError(f"`calibration` holds {name!r}, which is none of {', '.join(values)}.")
            values[name] = (max if name in _LOWEST else min)(values[name], max(value, _FLOORS.get(name, value)))
        return Bounds(**values)


@dataclass(frozen=True)
class FractionBits:
    """Fraction bits of what is truncated, and of the weights.

    Args:
        hidden (`int`): Embedding outputs and normalised rows: what meets Q, K, V, the first feed-forward matrix and
            the head.
        query (`int`), key (`int`), value (`int`): Their rows; the root of a head's width is in the queries' weights.
        scores (`int`): Attention scores, where softmax opens them.
        unnormalized (`int`): What softmax divides, at most.
        context (`int`): Fraction bits of numerators, and of their products with V, and the bound of these together.
        row_inverse (`int`): Fraction bits of the numerators and of the inverse of their sum together.
        row_sum (`int`): Sums of numerators.
        mixed (`int`): What attention gives the next matrix.
        inner (`int`), active (`int`): Inputs and outputs of the feed-forward activation.
        normal (`int`), deviation (`int`): Factors of a LayerNorm: its input and the inverse deviation, at most.
        variance (`int`): The variance in LayerNorm.
        head_inner (`int`), head_active (`int`): Inputs and outputs of the head's activation.
        query_weights (`int`), key_weights (`int`), value_weights (`int`), attention_output_weights (`int`),
        intermediate_weights (`int`), output_weights (`int`), head_weights (`int`): Of the matrices.
        gamma (`int`), mean_weights (`int`): A LayerNorm's weight, and that over the width, which makes the mean.
    """

    hidden: int = 14
    query: int = 14
    key: int = 14
    value: int = 12
    scores: int = 12
    unnormalized: int = 14
    context: int = 24
    row_inverse: int = 29
    row_sum: int = 16
    mixed: int = 14
    inner: int = 12
    active: int = 14
    normal: int = 15
    deviation: int = 15
    variance: int = 23
    head_inner: int = 12
    head_active: int = 14
    query_weights: int = 14
    key_weights: int = 14
    value_weights: int = 13
    attention_output_weights: int = 14
    intermediate_weights: int = 14
    output_weights: int = 14
    head_weights: int = 14
    gamma: int = 14
    mean_weights: int = 24


@dataclass(frozen=True)
class NumberFormat:
    """What a precision stands for.

    Args:
        bits (`FractionBits`): Of values and weights.
        bounds (`Bounds`): By default; training for `"reduced"` keeps values within them by `MARGIN`.
    """

    bits: FractionBits
    bounds: Bounds

    def unnormalized_bound(self, softmax: str) -> int:
        """log2 of what softmax divides by its sum: exponentials are at most 1."""
        return {"exact": 0, "2quad": 2 * self.bounds.scores - 2, "2relu": self.bounds.scores - 1}[softmax]

    def context_bound(self, softmax: str, length: int) -> int:
        """log2 of numerators times V, before the division, for rows of `length` tokens."""
        one = min(self.unnormalized_bound(softmax) + self.bounds.value, self.bounds.context)
        return one + (length - 1).bit_length()

    def unnormalized(self, softmax: str, length: int) -> int:
        """Fraction bits of what softmax divides, and of the context: few enough that 64 bits hold a LayerNorm."""
        return min(self.bits.unnormalized, self.bits.context - self.context_bound(softmax, length))


_FULL = NumberFormat(FractionBits(), Bounds())

_REDUCED = NumberFormat(
    FractionBits(
        hidden=8,
        query=7,
        key=4,
        value=6,
        scores=4,
        unnormalized=7,
        context=13,
        row_inverse=20,
        row_sum=11,
        mixed=8,
        inner=6,
        active=7,
        normal=7,
        deviation=14,
        variance=12,
        head_inner=10,
        head_active=10,
        query_weights=9,
        key_weights=7,
        value_weights=7,
        attention_output_weights=7,
        intermediate_weights=8,
        output_weights=6,
        head_weights=12,
        gamma=8,
        mean_weights=11,
    ),
    Bounds(scores=5, value=3, context=5, residual=4, inner=3, row_sum=0, variance_low=-5, variance_high=4),
)


def deviation_bits(features: int) -> int:
    """ceil(log2 d)."""
    return (features - 1).bit_length()


def deviation_ratio(features: int) -> float:
    """What a LayerNorm's weight is multiplied by on shares: z is divided by the root of sum z^2 / 2^ceil(log2 d)."""
    return math.sqrt(features / 2 ** deviation_bits(features))


def current_precision(name: str) -> str:
    """The name that a precision has now: checkpoints and shares of before 0.1 say `w8a8`, which is not INT8."""
    return "reduced" if name == "w8a8" else name


def number_format(precision: str, softmax: str = "exact") -> NumberFormat:
    """What the precision of this name stands for in an expert with this softmax."""
    if precision == "full":
        return _FULL
    if softmax == "2quad":
        return _REDUCED
    # Numerators are small here, and small ones need bits; so do the scores that they are made of.
    bits, one = replace(_REDUCED.bits, scores=7, context=14), {"exact": 1, "2relu": 2}[softmax]
    return NumberFormat(bits, replace(_REDUCED.bounds, scores=6, context=one, row_sum=_FULL.bounds.row_sum))
