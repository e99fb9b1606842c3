# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The precisions of an expert under encryption: fraction bits of truncated values and of weights, bounds of values.

`"full"` is the default and needs no training. `"reduced"` has about 8 fraction bits for activations and for weights,
and narrow bounds; an expert has to be trained for both.

Truncation on shares rounds up or down at random, so fewer bits of activations mean more noise in the logits. Weights
are rounded once, and a clear model can round them in the same way. Bits are spent where noise would be largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from .errors import SecureRouterValueError


PRECISIONS = ("full", "reduced")
SOFTMAXES = ("exact", "2quad", "2relu")

MARGIN = 1.5  # a bound is at least this many times the largest value of calibration, or the limit in training

# Least bounds: the windows of GeLU, tanh and the exponential have to fit into the range; and half of the range of the
# scores, by which padding is moved, has to lie beyond the exponential's window, where it is 0.
_FLOORS = {"inner": 3, "head": 3, "scores": 5, "routing": 2}
HIGHEST = 119 / 128  # of the power of two that bounds a mean square from above: what its gate reads
LOWEST = ("row_sum", "variance_low", "norm_low")  # bounds from below
USUAL = ("variance", "attended_variance", "norm")  # no bounds


@dataclass(frozen=True)
class Bounds:
    """log2 bounds of absolute values. The defaults hold for many encoders and not for all: conversion measures every
    encoder, layer by layer, and replaces the defaults that it exceeds.

    Args:
        scores (`int`): Attention scores lie between -2^(scores-1) and 2^(scores-1), and two scores of one row differ
            by less than `widest_distance`.
        value (`int`): Entries of V.
        context (`int`): Unnormalised attention weights times V, over the length; at most the product of both bounds.
        residual (`int`): Centred inputs of LayerNorm.
        inner (`int`): Inputs of the feed-forward activation.
        gate (`int`): What multiplies the feed-forward activation in a gated layer.
        routing (`int`): Scores of a sparse layer's router.
        expert (`int`): Outputs of its experts, with their mean removed, before the router's probability.
        row_sum (`int`): Smallest row sum of unnormalised attention weights under 2Quad and 2ReLU.
        variance_low (`int`): Smallest variance in LayerNorm.
        variance_high (`int`): Largest variance in LayerNorm, up to `HIGHEST` of the power.
        variance (`int`): A usual variance in LayerNorm. Not a bound: it divides fraction bits between the factors.
        attended_variance (`int`, *optional*): The same for a layer's first LayerNorm, behind attention; None for that
            of both.
        embedding (`int`): Embedding outputs that are shuffled or selected; checked by the client.
        head (`int`): Inputs of the head's activation.
        norm_low (`int`): Smallest mean square of a row that the head divides by its length.
        norm_high (`int`): Largest such mean square, up to `HIGHEST` of the power.
        norm (`int`): A usual one. Not a bound, as `variance`.
        logits (`int`): Logits, and a router's scores.
    """

    scores: int = 8
    value: int = 4
    context: int = 24
    residual: int = 9
    inner: int = 6
    gate: int = 6
    routing: int = 6
    expert: int = 9
    row_sum: int = -3
    variance_low: int = -14
    variance_high: int = 14
    variance: int = 0
    attended_variance: int | None = None
    embedding: int = 6
    head: int = 6
    norm_low: int = -14
    norm_high: int = 14
    norm: int = 0
    logits: int = 6

    def replaced(self, **measured: int) -> Bounds:
        """These bounds with some of them replaced, by no less than the gates need.

        Raises:
            `SecureRouterValueError`: `measured` has the name of no bound.
        """
        names = [field.name for field in fields(self)]
        for name in measured:
            if name not in names:
                raise SecureRouterValueError(f"`bounds` holds {name!r}, which is none of {', '.join(names)}.")
        return replace(self, **{name: max(value, _FLOORS.get(name, value)) for name, value in measured.items()})

    def beyond(self, other: Bounds) -> dict[str, int]:
        """The bounds that allow values which `other` does not."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in USUAL and (value < getattr(other, name) if name in LOWEST else value > getattr(other, name))
        }


@dataclass(frozen=True)
class FractionBits:
    """Fraction bits of truncated values, and of the weights.

    Args:
        hidden (`int`): Hidden states: embedding outputs and outputs of LayerNorm.
        query (`int`), key (`int`), value (`int`): Q, K and V; 1 / sqrt(head size) is folded into the query weights.
        scores (`int`): Attention scores, as softmax opens them.
        unnormalized (`int`): Unnormalised attention weights, at most.
        context (`int`): At most, the fraction bits of the context (unnormalised weights times V) and its bound, added.
        row_inverse (`int`): The fraction bits of unnormalised weights and of the inverse row sum, added.
        row_sum (`int`): Row sums of unnormalised weights.
        mixed (`int`): Output of attention, before the next matrix.
        inner (`int`), active (`int`): Inputs and outputs of the feed-forward activation.
        rotary (`int`): Factors of rotary positions.
        gated (`int`): Both factors of a gated feed-forward layer.
        normal (`int`), deviation (`int`): Factors of a LayerNorm, its input and the inverse deviation, at most.
        variance (`int`): The variance in LayerNorm.
        head_inner (`int`), head_active (`int`): Inputs and outputs of the head's activation.
        query_weights (`int`), key_weights (`int`), value_weights (`int`), attention_output_weights (`int`),
        intermediate_weights (`int`), output_weights (`int`), head_weights (`int`): The matrices of these layers.
        gamma (`int`), mean_weights (`int`): A LayerNorm's weight, and this weight over the width, for the mean.
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
    rotary: int = 10
    gated: int = 12
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
    """The numbers of a precision.

    Args:
        bits (`FractionBits`): Fraction bits of values and weights.
        bounds (`Bounds`): Default bounds; training for `"reduced"` keeps values within them by `MARGIN`.
    """

    bits: FractionBits
    bounds: Bounds

    def unnormalized_bound(self, softmax: str) -> int:
        """log2 bound of unnormalised attention weights; exponentials are at most 1."""
        return {"exact": 0, "2quad": 2 * self.bounds.scores - 2, "2relu": self.bounds.scores - 1}[softmax]

    def context_bound(self, softmax: str, length: int) -> int:
        """log2 bound of unnormalised attention weights times V, before the division, for rows of `length` tokens."""
        one = min(self.unnormalized_bound(softmax) + self.bounds.value, self.bounds.context)
        return one + (length - 1).bit_length()

    def unnormalized(self, softmax: str, length: int) -> int:
        """Fraction bits of unnormalised attention weights and of the context; few enough for LayerNorm in 64 bits."""
        found = min(self.bits.unnormalized, self.bits.context - self.context_bound(softmax, length))
        return min(found, self.bits.scores) if softmax == "2relu" else found  # of a ReLU's result bits are cut only


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
    """ceil(log2 d) of the width d of a LayerNorm."""
    return (features - 1).bit_length()


def deviation_ratio(features: int) -> float:
    """Factor of a LayerNorm's weight on shares, where z is divided by the root of sum z^2 / 2^ceil(log2 d)."""
    return math.sqrt(features / 2 ** deviation_bits(features))


def current_precision(name: str) -> str:
    """The current name of a precision: checkpoints and shares from before 0.1 name `reduced` `w8a8` (not INT8)."""
    return "reduced" if name == "w8a8" else name


def widest_distance(bounds: Bounds, padding_differs: bool = False) -> float:
    """How far two scores of one row may lie apart under exact softmax: half of their range, but for 2, which the
    exponential needs, and for two of the 256 units in which row maxima are searched: these are rounded, and get a unit
    more, so that no score lies above its maximum.

    Args:
        bounds ([`Bounds`]): Of the encoder.
        padding_differs (`bool`): Whether padding has scores of its own, as with a relative attention bias; they are
            moved below those of tokens, by a quarter of the range.
    """
    whole = 2.0**bounds.scores
    return whole / (4 if padding_differs else 2) - 2 * whole / 256 - 2


def number_format(precision: str, softmax: str = "exact", padding_differs: bool = False) -> NumberFormat:
    """The numbers of a precision.

    Args:
        precision (`str`): `"full"` or `"reduced"`.
        softmax (`str`): The expert's softmax.
        padding_differs (`bool`): As in [`widest_distance`], which a bit more of the scores makes up for.

    Raises:
        `SecureRouterValueError`: `precision` or `softmax` has another name.
    """
    precision = current_precision(precision)
    for name, value, known in (("precision", precision, PRECISIONS), ("softmax", softmax, SOFTMAXES)):
        if value not in known:
            raise SecureRouterValueError(f"`{name}` should be one of {', '.join(known)}, got {value!r}.")
    if precision == "full":
        return _FULL
    if softmax == "2quad":
        return _REDUCED
    # Unnormalised weights are small under "exact" and "2relu", so they and the scores need more bits.
    bits, one = replace(_REDUCED.bits, scores=7, context=14), {"exact": 1, "2relu": 2}[softmax]
    scores = 7 if padding_differs and softmax == "exact" else 6
    return NumberFormat(bits, replace(_REDUCED.bounds, scores=scores, context=one, row_sum=_FULL.bounds.row_sum))
