# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Scales, bounds and the ring of every opening of an encoder under the masked protocol.

A chain of linear steps must carry enough bits for all that follows until a nonlinear gate makes fresh words, so widths
are computed from the end of each chain backwards. A width above 64 raises; nothing is clamped. A bound violation in
production is not detected and gives garbage, not a leak.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ...errors import SecureRouterValueError
from ..gates.exponential import EXP_SCALE
from ..ring import MAX_BITS, checked_width


# The windows of the curved activations and of the exponential have to fit into the range.
_FLOORS = {"inner": 3, "head": 3, "scores": 4}


@dataclass(frozen=True)
class Bounds:
    """log2 of what absolute values stay below. The defaults hold for real encoders with a margin; what was seen in a
    fine-tuned six-layer encoder stands behind each.

    Args:
        scores (`int`): Attention scores lie within -2^(scores-1) and 2^(scores-1) (seen: -41 to 45), and two scores
            of one row differ by less than 2^(scores-1) - 4 (seen: 76).
        value (`int`): Entries of V (seen: 6.0).
        residual (`int`): Centred inputs of LayerNorm (seen: 218).
        inner (`int`): Inputs of the feed-forward activation (seen: 24).
        variance_low (`int`): Smallest variance in LayerNorm (seen: 0.13).
        variance_high (`int`): Largest variance in LayerNorm, up to 15/16 of the power (seen: 124).
        embedding (`int`): Embedding outputs, where they are shuffled or selected; checked by the client.
        head (`int`): Inputs of the head's activation.
        logits (`int`): Logits, and a router's scores.
    """

    scores: int = 8
    value: int = 4
    residual: int = 9
    inner: int = 6
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
            values[name] = (max if name == "variance_low" else min)(values[name], max(value, _FLOORS.get(name, value)))
        return Bounds(**values)


@dataclass(frozen=True)
class Precision:
    """Fraction bits and ring widths of one encoder on inputs of one length.

    Args:
        bounds (`Bounds`): What values stay below.
        length (`int`): T, tokens a row of attention spans.
        softmax (`str`): `"exact"`, `"2quad"` ((x + 5)^2 over its sum) or `"2relu"` (max(x, 0) over its sum).
        network (`str`): What the plan is made for, a name in `NETWORKS`.
    """

    bounds: Bounds
    length: int
    softmax: str = "exact"
    network: str = "lan"

    activations = 14
    weights = 14
    value_weights = 13
    values = 12
    scores = 12
    mean_weights = 24
    inner = 12
    row_sum = 16
    variance = 23
    logits = 12

    @property
    def product(self) -> int:
        """Scale of an activation times a weight."""
        return self.activations + self.weights

    @property
    def length_bits(self) -> int:
        """log2 of the length, rounded up: a row of exponentials sums to at most 2^this."""
        return (self.length - 1).bit_length()

    @property
    def numerator_bound(self) -> int:
        """Of what softmax divides by its sum: exponentials are at most 1."""
        return {"exact": 0, "2quad": 2 * self.bounds.scores - 2, "2relu": self.bounds.scores - 1}[self.softmax]

    @property
    def context_bound(self) -> int:
        """Of numerators times V, before the division."""
        return self.numerator_bound + self.length_bits + self.bounds.value

    @property
    def numerators(self) -> int:
        """Fraction bits of the numerators, and of the context: with its bound 24 bits, so that 64 hold a LayerNorm."""
        return min(14, 24 - self.context_bound)

    @property
    def row_inverse(self) -> int:
        """Fraction bits of the inverse of a row's sum."""
        return 29 - self.numerators

    @property
    def row_sum_range(self) -> tuple[int, int]:
        """log2 of the smallest and the largest sum of a row's numerators."""
        return (-6 if self.softmax == "exact" else -3), self.numerator_bound + self.length_bits + 1

    @property
    def mix_width(self) -> int:
        """Opening of the numerators and V."""
        return self.numerators + self.values + self.context_bound + 2

    @property
    def exponential_width(self) -> int:
        """Ring in which the exponential's words are dealt."""
        return checked_width(EXP_SCALE - self.numerators + self.mix_width, "The exponential (max_length, value bound)")

    @property
    def unit(self) -> int:
        """log2 of the unit in which the maximum of the scores is sought; it has 8 bits."""
        return self.bounds.scores - 8

    @property
    def embedding_width(self) -> int:
        """Ring in which embedding outputs travel until they meet weights."""
        return self.activations + self.bounds.embedding + 2

    @property
    def score_width(self) -> int:
        """Opening of Q and K: the scores are needed mod 2^J at 12 fraction bits, and with 8 bits above `unit`.

        The other kinds of softmax open them whole, and with room for a shift.
        """
        return 2 * self.activations + self.bounds.scores + {"exact": 0, "2quad": 1, "2relu": 2}[self.softmax]

    @property
    def residual_width(self) -> int:
        """Ring of a LayerNorm's input: the opening of what W_o and the second feed-forward matrix meet."""
        return self.product + self.bounds.residual + 2

    @property
    def attention_width(self) -> int:
        """Opening of the hidden state in front of Q, K and V."""
        return max(
            self.score_width + self.weights,
            self.mix_width + self.activations + self.value_weights - self.values,
            self.residual_width + self.mean_weights - self.weights,
        )

    @property
    def feed_forward_width(self) -> int:
        """Opening of the hidden state in front of the first feed-forward matrix; activations use their input as is."""
        return max(self.residual_width + self.weights, self.residual_width + self.mean_weights - self.weights)

    def norm_scales(self, width: int) -> tuple[int, int]:
        """Fraction bits of a LayerNorm's input and of the inverse deviation, whose product goes to a ring of `width`.

        As many as 64 bits hold: at 25 together, a normalised value is within 2^-13 (1/sigma + sigma / 2).
        """
        room = min(MAX_BITS - width + self.activations, 30)
        if room < 18:
            raise SecureRouterValueError(
                f"A LayerNorm has {room} bits left for its factors and needs 18; narrow the bounds."
            )
        return room - room // 2, room // 2
