# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The head of an encoder on shares: dense, activation and classifier, with a norm behind the activation or without.

Heads of encoders with the norm first read the first token's sum of all steps, and compute the last norm themselves,
together with their first matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ....number_format import deviation_bits
from ...gates.gate import SecretProtocol
from ...gates.in_range import InRange
from ...gates.party import Party
from ...gates.secret import Secret
from ...gates.widen import Widen
from ...ring.words import checked_width
from .pooling import MeanPooling
from .ring_widths import RingWidths
from .steps import SecureSteps, Squares, normal_bound


@dataclass(frozen=True)
class SecureHead(SecureSteps):
    """The head of one encoder; a base class of `MaskedEncoder`, which describes the fields."""

    @property
    def layer_rings(self) -> tuple[RingWidths, ...]:
        """Ring widths of each layer."""
        return self.layers or (self.rings,) * self.spec.num_layers

    @property
    def reads_sum(self) -> bool:
        """Whether heads read the sum of all steps, which no norm has divided yet."""
        return self.spec.norm_first and self.spec.pooling == "first"

    @property
    def hidden_width(self) -> int:
        """Ring width of the pooled row that heads read."""
        if self.reads_sum:
            return self.layer_rings[-1].stream_width
        if self.spec.pooling == "late":
            return self.rings.classifier_width
        heads = max(self.rings.head_width(self.spec.head), self.head_width)
        return heads if self.spec.pooling == "mean" else max(self.layer_rings[-1].attention_width, heads)

    @property
    def hidden_bound(self) -> int:
        """log2 bound of the pooled row that heads read."""
        if self.reads_sum:
            return self.layer_rings[-1].bounds.residual
        return self.rings.bounds.head if self.spec.pooling == "late" else normal_bound(self.spec.hidden_size)

    @property
    def logit_width(self) -> int:
        """Ring width of the shares of the logits."""
        return self.rings.logits + self.rings.bounds.logits + 2

    @property
    def mean(self) -> MeanPooling | None:
        """The mean of the tokens' rows, or of what the head's activation gives for them, if heads read it; None if
        they read the first token's row."""
        bits = self.rings.bits
        if self.spec.pooling == "first":
            return None
        scale = bits.head_active if self.spec.pooling == "late" else bits.hidden
        return MeanPooling(self.rings.length, scale, self.hidden_bound, self.hidden_width)

    @property
    def late_width(self) -> int:
        """Ring width of the rows that the head's first matrix reads before their mean is taken. GeLU's result contains
        its input, so the input is kept in the ring of the result."""
        assert self.mean is not None, "a late pooling takes a mean"
        bits = self.rings.bits
        product = bits.hidden + bits.head_weights
        return max(product + self.rings.bounds.head + 2, self.mean.row_width + product - bits.head_active)

    def check_head(self) -> None:
        """Raise an error if a ring of the head does not fit into 64 bits, or its activation's inputs are too wide.

        Raises:
            `SecureRouterValueError`: See above.
        """
        rings, head, bounds = self.rings, self.spec.head, self.rings.bounds
        rings.check_head(head, head.inner_size or self.spec.hidden_size)
        normed, features = [], self.spec.hidden_size
        if self.reads_sum:
            bound = bounds.logits if head.dense is None else bounds.head
            normed.append((self._last_squares, self._dense_width, bound, 0))
            last = self.layer_rings[-1]
            normed.append(
                (self._attended_squares, last.feed_forward_width, max(last.bounds.inner, last.bounds.gate), 0)
            )
            checked_width(self._squared_width(self._last_squares, features, rings.bits.hidden), "The last norm")
        if head.centred:
            normed.append((self._head_squares, self._classifier_width, bounds.logits, deviation_bits(features)))
        for squares, width, bound, more in normed:
            checked_width(max(self._normed_width(squares, bound), width) + more, "The head's norm")
            rings.product_scales(width, rings.bits.hidden + rings.bits.head_weights, squares.usual)

    @property
    def _last_squares(self) -> Squares:
        """Bounds of the last norm, of the first token's row."""
        own = self.layer_rings[-1].bounds
        return Squares(own.variance_low, own.variance_high, own.variance)

    @property
    def _attended_squares(self) -> Squares:
        """Bounds of the norm behind the attention of the last layer."""
        own = self.layer_rings[-1].bounds
        usual = own.variance if own.attended_variance is None else own.attended_variance
        return self._last_squares._replace(usual=usual)

    @property
    def _dense_width(self) -> int:
        """Ring width of a head's first product with the normalised sum of all steps; a norm behind the activation
        needs one that holds the sum of a row."""
        head = self.spec.head
        return self.rings.head_width(head) + (deviation_bits(self.spec.hidden_size) if head.centred else 0)

    @property
    def _short(self) -> int:
        """By how many fraction bits more a head's norm reads its row, where rows are short."""
        return max(0, -self.rings.bounds.norm) // 2

    @property
    def _head_squares(self) -> Squares:
        """Bounds of a head's own norm, of rows multiplied by 2^`_short` and by their width over a power of 2."""
        own, more = self.rings.bounds, 2 * self._short
        return Squares(own.norm_low + more - 2, own.norm_high + more, own.norm + more)

    @property
    def _classifier_width(self) -> int:
        """Ring width of the classifier's product with a normalised row."""
        return self.rings.bits.hidden + self.rings.bits.head_weights + self.rings.bounds.logits + 2

    def head(self, party: Party, hidden: Secret) -> SecretProtocol[Secret]:
        """Logits, (B, C), from the hidden state of `run_encoder`, which several heads may read."""
        head, own = self.spec.head, replace(self, place=f"{self.prefix}head")
        if head.dense is None or self.spec.pooling == "late":
            logits = yield from own._read(party, hidden, "head.classifier", self.rings.bounds.logits)
        else:
            dense = yield from own._read(party, hidden, "head.dense", self.rings.bounds.head)
            logits = yield from (own._of_unit_row if head.normalize else own._of_active)(party, dense)
        logits = logits.truncate(self.rings.logits).narrow(self.logit_width)
        if party.guard is not None:
            party.guard.later(InRange(logits.shape).run(party, logits.with_bound(self.rings.bounds.logits)))
        return (yield from party.checked(logits, f"{self.prefix}head logits"))

    def activated(self, party: Party, rows: Secret) -> SecretProtocol[Secret]:
        """What a late pooling takes the mean of: the activation of the head's first product, of every row."""
        assert self.mean is not None, "a late pooling takes a mean"
        matrices = {"head.dense": self.rings.bits.head_weights}
        (dense,) = yield from self._linear(party, rows, self.late_width, self.rings.bounds.head, matrices)
        return (yield from replace(self, place=f"{self.prefix}head")._active(party, dense, self.mean.row_width))

    def _read(self, party: Party, hidden: Secret, name: str, bound: int) -> SecretProtocol[Secret]:
        """The product of what the head reads with its first matrix."""
        if self.reads_sum:
            (product,) = yield from self._normed_products(
                party, hidden, self._last_squares, [name], self._dense_width, bound, centre=False
            )
            return product
        matrices = {name: self.rings.bits.head_weights}
        (product,) = yield from self._linear(party, hidden, self.hidden_width, bound, matrices)
        return product

    def _active(self, party: Party, dense: Secret, width: int) -> SecretProtocol[Secret]:
        """The activation of the head's first product, at `bits.head_active` in Z_2^`width`."""
        bits, name = self.rings.bits, self.spec.head.activation
        bound = self.rings.bounds.head
        return (yield from self._activation(party, name, dense, bound, bits.head_inner, bits.head_active, width))

    def _of_active(self, party: Party, dense: Secret) -> SecretProtocol[Secret]:
        """The classifier's product with the activation of the head's first product."""
        rings, bits = self.rings, self.rings.bits
        width = rings.classifier_width
        inner = bits.head_active + rings.bounds.head + 3 if rings.widens(self.spec.head) else width
        row = yield from self._active(party, dense, inner)
        if inner < width:
            row = yield from Widen(row.shape, inner, width).run(party, row)
        (logits,) = yield from self._linear(
            party, row, width, rings.bounds.logits, {"head.classifier": bits.head_weights}
        )
        return logits

    def _of_unit_row(self, party: Party, dense: Secret) -> SecretProtocol[Secret]:
        """The classifier's product with the activation of the head's first product over its length, up to the constant
        that folding takes care of."""
        rings, bound = self.rings.of_head_norm, self.rings.bounds.head
        if self.spec.head.centred:
            return (yield from self._of_centred_row(party, dense))
        bits, width = rings.bits, self.rings.unit_width(dense.shape[-1])
        matrices = {"head.classifier": bits.head_weights}
        scale, _ = rings.norm_scales(width)
        row = yield from self._activation(
            party, self.spec.head.activation, dense, bound, bits.head_inner, scale, scale + bound + 3
        )
        own = replace(self, spec=replace(self.spec, layer_norm_eps=0.0), rings=rings)
        row = yield from own._norm(party, row, width)
        (logits,) = yield from self._linear(party, row, width, rings.bounds.logits, matrices)
        return logits

    def _of_centred_row(self, party: Party, dense: Secret) -> SecretProtocol[Secret]:
        """The classifier's product with the LayerNorm of the activation of the head's first product."""
        bits, head, bounds = self.rings.bits, self.spec.head, self.rings.bounds
        scale, row_bits = bits.hidden + self._short, deviation_bits(dense.shape[-1])
        small = scale + bounds.head + 3
        width = small if self.rings.pools else small + row_bits
        row = yield from self._activation(party, head.activation, dense, bounds.head, bits.head_inner, scale, width)
        if self.rings.pools:
            row = yield from Widen(row.shape, small, small + row_bits).run(party, row)
        # A row of 2^`_short` times the values has the same norm, with as much more added to its variance.
        row = replace(row, scale=bits.hidden, bound=bounds.head + self._short)
        own = replace(self, spec=replace(self.spec, layer_norm_eps=self.spec.layer_norm_eps * 4.0**self._short))
        (logits,) = yield from own._normed_products(
            party,
            row,
            self._head_squares,
            ["head.classifier"],
            self._classifier_width,
            bounds.logits,
            centre=True,
        )
        return logits
