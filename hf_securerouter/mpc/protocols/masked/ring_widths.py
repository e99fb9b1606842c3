# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The ring of every opening of an encoder under the masked protocol.

A chain of linear steps must carry enough bits for all that follows until a nonlinear gate makes fresh words, so widths
are computed from the end of each chain backwards. A width above 64 raises; nothing is clamped. A bound violation in
production is not detected and gives garbage, not a leak.
"""

from __future__ import annotations

from dataclasses import dataclass

from ....errors import SecureRouterValueError
from ....number_format import Bounds, FractionBits, NumberFormat
from ...gates.exponential import EXP_SCALE
from ...ring.words import MAX_BITS, checked_width


@dataclass(frozen=True)
class RingWidths:
    """Ring widths of one encoder on inputs of one length.

    Args:
        bounds (`Bounds`): What values stay below.
        length (`int`): T, tokens a row of attention spans.
        softmax (`str`): `"exact"`, `"2quad"` ((x + 5)^2 over its sum) or `"2relu"` (max(x, 0) over its sum).
        network (`str`): What the plan is made for, a name in `NETWORKS`.
        hidden_act (`str`): The feed-forward activation.
        bits (`FractionBits`): Scales.
    """

    bounds: Bounds
    length: int
    softmax: str = "exact"
    network: str = "lan"
    hidden_act: str = "gelu"
    bits: FractionBits = FractionBits()

    logits = 12  # fraction bits, the same whichever expert made them

    @property
    def _format(self) -> NumberFormat:
        return NumberFormat(self.bits, self.bounds)

    @property
    def attended(self) -> int:
        """Scale of what W_o gives."""
        return self.bits.mixed + self.bits.attention_output_weights

    @property
    def outer(self) -> int:
        """Scale of what the second feed-forward matrix gives."""
        return self.bits.active + self.bits.output_weights

    @property
    def length_bits(self) -> int:
        """log2 of the length, rounded up: a row of exponentials sums to at most 2^this."""
        return (self.length - 1).bit_length()

    @property
    def unnormalized_bound(self) -> int:
        """Of what softmax divides by its sum: exponentials are at most 1."""
        return self._format.unnormalized_bound(self.softmax)

    @property
    def context_bound(self) -> int:
        """Of numerators times V, before the division."""
        return self._format.context_bound(self.softmax, self.length)

    @property
    def unnormalized(self) -> int:
        """Fraction bits of the numerators, and of the context."""
        return self._format.unnormalized(self.softmax, self.length)

    @property
    def row_inverse(self) -> int:
        """Fraction bits of the inverse of a row's sum."""
        return self.bits.row_inverse - self.unnormalized

    @property
    def row_sum_range(self) -> tuple[int, int]:
        """log2 of the smallest and the largest sum of a row's numerators."""
        return (-6 if self.softmax == "exact" else self.bounds.row_sum), self.unnormalized_bound + self.length_bits + 1

    @property
    def mix_width(self) -> int:
        """Opening of the numerators and V."""
        return self.unnormalized + self.bits.value + self.context_bound + 2

    @property
    def exponential_width(self) -> int:
        """Ring in which the exponential's words are dealt."""
        return checked_width(
            EXP_SCALE - self.unnormalized + self.mix_width, "The exponential (max_length, value bound)"
        )

    @property
    def unit(self) -> int:
        """log2 of the unit in which the maximum of the scores is sought; it has 8 bits."""
        return self.bounds.scores - 8

    @property
    def embedding_width(self) -> int:
        """Ring in which embedding outputs travel until they meet weights."""
        return self.bits.hidden + self.bounds.embedding + 2

    @property
    def score_width(self) -> int:
        """Opening of Q and K: the scores are needed mod 2^J at their fraction bits, and with 8 bits above `unit`.

        The other kinds of softmax open them whole, and with room for a shift.
        """
        room = {"exact": 0, "2quad": 1, "2relu": 2}[self.softmax]
        return self.bits.query + self.bits.key + self.bounds.scores + room

    @property
    def attended_width(self) -> int:
        """Ring of the first LayerNorm's input: the opening of what W_o meets."""
        return self.attended + self.bounds.residual + 2

    @property
    def outer_width(self) -> int:
        """Ring of the second LayerNorm's input: the opening of what the second feed-forward matrix meets."""
        return self.outer + self.bounds.residual + 2

    @property
    def attention_width(self) -> int:
        """Opening of the hidden state in front of Q, K and V, and of the head, several of which may read one row."""
        bits = self.bits
        return max(
            bits.hidden + bits.head_weights + Bounds.head + 2,
            self.score_width + bits.hidden + bits.query_weights - bits.query,
            self.score_width + bits.hidden + bits.key_weights - bits.key,
            self.mix_width + bits.hidden + bits.value_weights - bits.value,
            self._residual_width(self.attended_width, self.attended),
        )

    @property
    def feed_forward_width(self) -> int:
        """Opening of the hidden state in front of the first feed-forward matrix: GeLU uses its input as is."""
        bits = self.bits
        product = bits.hidden + bits.intermediate_weights
        inner = (
            self.outer_width + product - bits.active if self.hidden_act == "gelu" else self.bounds.inner + product + 2
        )
        return max(inner, self._residual_width(self.outer_width, self.outer))

    def _residual_width(self, width: int, scale: int) -> int:
        """Opening of the hidden state whose residual and mean are needed at a scale in a ring of `width` bits."""
        return width + self.bits.hidden + max(self.bits.gamma, self.bits.mean_weights) - scale

    @property
    def classifier_width(self) -> int:
        """Opening of the head's activations in front of the classifier."""
        return self.bits.head_active + self.bits.head_weights + self.bounds.logits + 2

    def norm_scales(self, width: int) -> tuple[int, int]:
        """Fraction bits of a LayerNorm's input and of the inverse deviation, whose product goes to a ring of `width`.

        As many as 64 bits hold: at 25 together, a normalised value is within 2^-13 (1/sigma + sigma / 2).
        """
        bits = self.bits
        room = min(MAX_BITS - width + bits.hidden, bits.normal + bits.deviation)
        if room < 18:
            raise SecureRouterValueError(
                f"A LayerNorm has {room} bits left for its factors and needs 18; narrow the bounds."
            )
        normal = min(bits.normal, room - room // 2)
        return normal, room - normal
