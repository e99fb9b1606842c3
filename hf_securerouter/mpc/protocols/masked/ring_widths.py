# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The ring width of every opening of an encoder under the masked protocol, in bits.

A chain of linear steps must keep enough bits for all its later steps, until a nonlinear gate makes fresh shares; so
widths are computed backwards from the end of each chain. A width above 64 bits raises an error. A value beyond its
bound gives a wrong result, which a guard alone notices, and nothing leaks. So conversion measures the values of every
layer, and each layer has ring widths of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ....errors import SecureRouterValueError
from ....number_format import Bounds, FractionBits, NumberFormat, deviation_bits
from ...gates.exponential import EXP_SCALE
from ...models import HeadSpec
from ...ring.words import MAX_BITS, checked_width


WIDEST_SCORES = 9  # row maxima are searched with 8 bits, in units of at most 2
WIDEST_CURVED = 10  # log2 of an input of GeLU or tanh: the dealer's look-ups double with every bit
LEAST_NORMAL = 7  # fraction bits of a LayerNorm's input
USUAL_PRODUCT, WIDEST_INVERSE = 15, 25  # fraction bits of a product, and most of the inverse that multiplies it


@dataclass(frozen=True)
class RingWidths:
    """Ring widths of one layer, or of the head, on inputs of one length.

    Args:
        bounds (`Bounds`): log2 bounds of absolute values.
        length (`int`): T, the tokens of an input.
        softmax (`str`): `"exact"`, `"2quad"` ((x + 5)^2 over its sum) or `"2relu"` (max(x, 0) over its sum).
        network (`str`): The network to optimise for, a name in `NETWORKS`.
        hidden_act (`str`): The feed-forward activation.
        bits (`FractionBits`): Fraction bits.
        norm_first (`bool`), gated (`bool`), rotary (`bool`): As in `EncoderSpec`.
        shifts_padding (`bool`): Whether scores of padding are moved below those of tokens.
        guarded (`bool`): Whether mean squares need room above their bounds, where a guard notices them.
        pools (`bool`): Whether heads read the mean of all rows, which is made in a ring of few bits.
        experts (`int`): Experts of a sparse layer; 0 for a dense one.
        stream (`int`): Without a norm behind each step, the log2 bound of the sum of all steps up to the last layer.
    """

    bounds: Bounds
    length: int
    softmax: str = "exact"
    network: str = "lan"
    hidden_act: str = "gelu"
    bits: FractionBits = FractionBits()
    norm_first: bool = False
    gated: bool = False
    rotary: bool = False
    shifts_padding: bool = False
    guarded: bool = False
    pools: bool = False
    stream: int = 0
    experts: int = 0

    logits = 12  # fraction bits, the same whichever expert made them

    @property
    def _format(self) -> NumberFormat:
        return NumberFormat(self.bits, self.bounds)

    @property
    def attended(self) -> int:
        """Fraction bits of the product with W_o."""
        return self.bits.mixed + self.bits.attention_output_weights

    @property
    def outer(self) -> int:
        """Fraction bits of the product with the second feed-forward matrix."""
        return self.bits.active + self.bits.output_weights

    @property
    def length_bits(self) -> int:
        """log2 of the length, rounded up: a row of exponentials sums to at most 2^`length_bits`."""
        return (self.length - 1).bit_length()

    @property
    def unnormalized_bound(self) -> int:
        """log2 bound of unnormalised attention weights; exponentials are at most 1."""
        return self._format.unnormalized_bound(self.softmax)

    @property
    def context_bound(self) -> int:
        """log2 bound of unnormalised attention weights times V, before the division by the row sum."""
        return self._format.context_bound(self.softmax, self.length)

    @property
    def unnormalized(self) -> int:
        """Fraction bits of unnormalised attention weights, and of the context."""
        return self._format.unnormalized(self.softmax, self.length)

    @property
    def row_inverse(self) -> int:
        """Fraction bits of the inverse of a row sum."""
        return self.bits.row_inverse - self.unnormalized

    @property
    def row_sum_range(self) -> tuple[int, int]:
        """log2 of the smallest and the largest row sum of unnormalised attention weights."""
        return (-6 if self.softmax == "exact" else self.bounds.row_sum), self.unnormalized_bound + self.length_bits + 1

    @property
    def mix_width(self) -> int:
        """Ring width of the opening of unnormalised attention weights and V."""
        return self.unnormalized + self.bits.value + self.context_bound + 2

    @property
    def weights_width(self) -> int:
        """Ring width of unnormalised attention weights before they are truncated for the product with V.

        It holds that product and the row sums; and a ReLU's result needs a ring wider than its input's.
        """
        product = self.mix_width - self.unnormalized
        if self.softmax == "exact":
            return EXP_SCALE + product
        scale, row_sum = self.bits.scores, self.row_sum_range[1]
        if self.softmax == "2quad":
            return 2 * scale + max(product, row_sum)
        return scale + max(product, row_sum, self.bounds.scores + 3)

    @property
    def unit(self) -> int:
        """log2 of the unit in which row maxima are searched, with 8 bits for a score."""
        return self.bounds.scores - 8

    @property
    def embedding_width(self) -> int:
        """Ring width of embedding outputs that are shuffled or selected before they meet weights."""
        return self.bits.hidden + self.bounds.embedding + 2

    @property
    def score_width(self) -> int:
        """Ring width of the opening of Q and K.

        Exact softmax needs scores mod 2^`bounds.scores` only. 2Quad and 2ReLU need whole scores, and 1 or 2 bits more
        for their shift.
        """
        room = {"exact": 0, "2quad": 1, "2relu": 2}[self.softmax]
        return self.bits.query + self.bits.key + self.bounds.scores + room

    @property
    def guarded_scores(self) -> int:
        """log2 bound of scores that a guard notes. The differences of others are within `widest_distance`."""
        return self.bounds.scores - (3 if self.shifts_padding else 2)

    @property
    def attended_width(self) -> int:
        """Ring width of the opening before W_o, whose product is the first LayerNorm's input."""
        return self.attended + self.sum_bound + 2

    @property
    def outer_width(self) -> int:
        """Ring width of the opening before the second feed-forward matrix; the second LayerNorm reads the product."""
        return self.outer + self.sum_bound + 2

    @property
    def active_width(self) -> int:
        """Ring width of the opening before the second feed-forward matrix, or before the experts' second matrices,
        whose products are bounded by themselves."""
        return self.outer + self.bounds.expert + 2 if self.experts else self.outer_width

    @property
    def selected_width(self) -> int:
        """Ring width of the opening of experts' outputs, among which each token's are chosen."""
        return self.active_width - self.bits.output_weights

    @property
    def sum_bound(self) -> int:
        """log2 bound of what a LayerNorm reads: a layer's residual, or the sum of all steps up to the last layer."""
        return max(self.bounds.residual, self.stream)

    @property
    def stream_width(self) -> int:
        """Ring width of the sum of all steps."""
        return self.bits.hidden + self.sum_bound + 2

    @property
    def attention_width(self) -> int:
        """Ring width of the opening of a hidden state before Q, K and V, or before the heads, which may be several."""
        bits = self.bits
        turned = bits.rotary if self.rotary else 0
        return max(
            bits.hidden + bits.head_weights + Bounds.head + 2,
            self.score_width + bits.hidden + bits.query_weights + turned - bits.query,
            self.key_width,
            0 if self.norm_first else self._residual_width(self.attended_width, self.attended),
        )

    @property
    def key_width(self) -> int:
        """Ring width of the opening of a hidden state before K and V."""
        bits = self.bits
        turned = bits.rotary if self.rotary else 0
        return max(
            self.score_width + bits.hidden + bits.key_weights + turned - bits.key,
            self.mix_width + bits.hidden + bits.value_weights - bits.value,
        )

    def head_width(self, head: HeadSpec) -> int:
        """Ring width of the opening of a pooled row before the head's first matrix.

        GeLU's result contains its input, so the input is kept in the ring of the result: the classifier's, or one that
        holds the values before they are divided by the length of the row.
        """
        bits, bound = self.bits, self.bounds.logits if head.dense is None else self.bounds.head
        product = bits.hidden + bits.head_weights
        if head.normalize or self.widens(head):
            return product + bound + 3
        if head.activation in ("gelu", "silu") and head.dense is not None:
            return max(product + bound + 2, self.classifier_width + product - bits.head_active)
        return product + bound + 2

    def widens(self, head: HeadSpec) -> bool:
        """Whether a head's activation is computed in the ring of its values, and widened for the classifier."""
        return self.pools and head.activation in ("gelu", "silu") and head.dense is not None and not head.normalize

    @property
    def feed_forward_width(self) -> int:
        """Ring width of the opening of a hidden state before the first feed-forward matrix.

        GeLU's result contains its input, so the input is kept in the ring of the result.
        """
        bits = self.bits
        product = bits.hidden + bits.intermediate_weights
        if self.gated:
            inner = self.activation_width + product - bits.gated
        elif self.hidden_act in ("gelu", "silu"):
            inner = self.active_width + product - bits.active
        else:
            inner = self.bounds.inner + product + 2
        gate = self.bounds.gate + product + 2 if self.gated else 0
        if self.experts:
            gate = max(gate, self.bounds.routing + product + 4)  # the second choice takes two bits more
        return max(inner, gate, 0 if self.norm_first else self._residual_width(self.outer_width, self.outer))

    @property
    def activation_width(self) -> int:
        """Ring width of a gated layer's activation; one bit more than its opening, from which it is lifted."""
        return self.bits.gated + self.bounds.inner + 3

    @property
    def gated_width(self) -> int:
        """Ring width of the product of a gated layer's factors, of which `bits.active` fraction bits are kept."""
        return self.outer_width + 2 * self.bits.gated - self.bits.active

    def _residual_width(self, width: int, scale: int) -> int:
        """Ring width of the opening of a hidden state, if its residual has `scale` in a ring of `width` bits."""
        return width + self.bits.hidden + max(self.bits.gamma, self.bits.mean_weights) - scale

    @property
    def classifier_width(self) -> int:
        """Ring width of the opening of the head's activations before the classifier."""
        return self.bits.head_active + self.bits.head_weights + self.bounds.logits + 2

    def unit_width(self, features: int) -> int:
        """Ring width of the opening of a row of length 1 before the classifier; wide enough for its squares."""
        product = self.bits.hidden + self.bits.head_weights + self.bounds.logits + 2
        spread = self.bounds.norm_high - min(self.bounds.norm, 0)
        room = 2 if self.guarded else 0
        return max(product, self.bits.hidden + spread + deviation_bits(features) + room)

    @property
    def of_head_norm(self) -> RingWidths:
        """The same for a head's division by the length of a row, which is a LayerNorm without a mean. Short rows,
        which no LayerNorm has, get more fraction bits."""
        own, short = self.bounds, max(0, -self.bounds.norm)
        squares = {"variance_low": own.norm_low, "variance_high": own.norm_high, "variance": own.norm}
        bits = replace(self.bits, normal=self.bits.normal + short // 2, variance=self.bits.variance + short)
        return replace(self, bits=bits, bounds=replace(own, residual=own.head, **squares))

    def norm_scales(self, width: int, attended: bool = False) -> tuple[int, int]:
        """Fraction bits of a LayerNorm's input and of the inverse deviation, whose product has a ring of `width` bits.

        Both get as many bits as fit into 64, the inverse more of them the larger a usual variance is. With 25 of them,
        a normalised value is within 2^-13 (1/sigma + sigma/2) if that variance is 1.

        Args:
            width (`int`): Ring width of the result.
            attended (`bool`): Whether it is the layer's first LayerNorm, behind attention.

        Raises:
            `SecureRouterValueError`: Fewer than 18 bits are left for both.
        """
        bits = self.bits
        room = min(MAX_BITS - width + bits.hidden, bits.normal + bits.deviation)
        if room < 18:
            raise SecureRouterValueError(
                f"A LayerNorm has {room} bits left for its factors and needs 18: `bounds` of 2^{self.bounds.residual} "
                f"for its input and 2^{self.bounds.inner} for the feed-forward activation are too wide together."
            )
        usual = self.bounds.attended_variance if attended else None
        usual = self.bounds.variance if usual is None else usual
        normal = min(bits.normal, max(room - (room + usual) // 2, LEAST_NORMAL))
        return normal, room - normal

    def product_scales(self, width: int, scale: int, usual: int) -> tuple[int, int]:
        """Fraction bits of a product with a matrix and of the inverse deviation that multiplies it; as `norm_scales`.

        Args:
            width (`int`): Ring width of the result at `scale` fraction bits.
            scale (`int`): Fraction bits of the result.
            usual (`int`): log2 of a usual variance.

        Raises:
            `SecureRouterValueError`: Fewer than 24 bits are left for both.
        """
        room = MAX_BITS - width + scale
        if room < 24:
            raise SecureRouterValueError(
                f"A norm in front of a matrix has {room} bits left for its factors and needs 24: the results have a "
                f"ring of {width} bits, as wide as the bounds say."
            )
        product = min(USUAL_PRODUCT + max(0, -usual) // 2, max(room // 2 - usual // 2, LEAST_NORMAL))
        return product, min(room - product, WIDEST_INVERSE)

    def check(self, output_width: int) -> None:
        """Raise an error if a ring of a layer does not fit into 64 bits.

        Args:
            output_width (`int`): The ring width of the layer's output: the next layer's `attention_width`.

        Raises:
            `SecureRouterValueError`: A ring does not fit, or the range of scores or of GeLU's inputs is too wide for
                its gate.
        """
        _check_curved(self.hidden_act, "inner", self.bounds.inner)
        if self.softmax == "exact" and self.bounds.scores > WIDEST_SCORES:
            raise SecureRouterValueError(
                f"`scores` is bounded by 2^{self.bounds.scores - 1}, and exact softmax reads scores up to "
                f"2^{WIDEST_SCORES - 1}."
            )
        widths = {
            "hidden state": self.attention_width,
            "attention scores": self.score_width,
            "attention weights (max_length, value bound)": self.weights_width,
            "division by the row sum": self.attended_width + self.unnormalized + self.row_inverse - self.bits.mixed,
            "feed-forward input": self.feed_forward_width,
            "feed-forward activation": self.active_width + max(self.bits.inner, self.bits.active) - self.bits.active,
        }
        if self.gated:
            widths["gated feed-forward layer"] = self.gated_width
        for name, width in widths.items():
            checked_width(width, f"The {name}")
        self.norm_scales(self.feed_forward_width, attended=True)
        for width in (output_width, *([self.attention_width] if self.norm_first else [])):
            self.norm_scales(width)

    def check_head(self, head: HeadSpec, features: int) -> None:
        """Raise an error if a ring of a head does not fit into 64 bits, or its activation's inputs are too wide.

        Args:
            head (`HeadSpec`): The head.
            features (`int`): Width of its classifier's input.

        Raises:
            `SecureRouterValueError`: See above.
        """
        _check_curved(head.activation, "head", self.bounds.head)
        checked_width(self.head_width(head), "The head's input")
        checked_width(self.classifier_width, "The classifier's input")
        if head.normalize:
            self.of_head_norm.norm_scales(self.unit_width(features))


def _check_curved(activation: str, name: str, bound: int) -> None:
    if activation in ("gelu", "silu", "tanh") and bound > WIDEST_CURVED:
        raise SecureRouterValueError(
            f"`{name}` is bounded by 2^{bound}, and {activation} reads inputs up to 2^{WIDEST_CURVED}."
        )
