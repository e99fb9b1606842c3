# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder and its head under the masked protocol: a norm behind each step, as in BERT, or before each step.

Rounds of a layer at length 128, by the value that is opened: hidden state; Q, K, V; row maxima (6); the exponent and
its bit (2); unnormalised weights with the row sums; inverses of the row sums; context; input of W_o; LayerNorm (4);
hidden state; GeLU (2); input of W_2; LayerNorm (4). Where scores depend on the place, that of padding is opened beside
the first hidden state.

With the norm first, hidden states are the sum of all steps, which no gate refreshes: it stays in one ring, wide enough
for the largest sum, and each norm reads it. A gated feed-forward layer takes one round more; the last one, if heads
read the first token's row only, one round less.

Weights are found under `prefix` and a position `before.at`, such as `experts.0.in.0.query`; see `folding.layer_names`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ....number_format import deviation_bits
from ...gates.gate import SecretProtocol, together
from ...gates.party import Party
from ...gates.product import Product
from ...gates.secret import Secret
from .attention import Positions, SecureAttention
from .folding import layer_names
from .heads import SecureHead
from .mixture import SecureMixture
from .steps import centred


@dataclass(frozen=True)
class MaskedEncoder(SecureHead, SecureAttention, SecureMixture):
    """One encoder with its head, for batches of one shape.

    Args:
        spec (`EncoderSpec`): Its public shape.
        rings (`RingWidths`): Fraction bits and ring widths, for inputs of `rings.length` tokens; those of the head
            and, without `layers`, of every layer.
        prefix (`str`): Start of the names of its weights, such as `"experts.0."`.
        layers (`tuple[RingWidths, ...]`): Ring widths of each layer, where they differ.
        head_width (`int`): Ring width that the widest head needs, if several heads read the encoder's pooled row.
        place (`str`): The layer or head whose values are checked, in errors of a debugging session.
        layer (`int`): Position of the layer that runs.
    """

    @property
    def input_width(self) -> int:
        """Ring width of the client's shares of the embedding output."""
        first = self.layer_rings[0]
        if not self.spec.norm_first:
            return first.attention_width
        total = first.stream_width + (first.bits.mean_weights if self.spec.norm == "layer" else 0)
        return max(total, first.attention_width) if self.spec.bare_first else total

    @property
    def output_widths(self) -> tuple[int, ...]:
        """Ring width of each layer's output, which the next layer, the pooling or the heads open."""
        pooled = self.hidden_width if self.mean is None else self.mean.row_width
        if self.spec.pooling == "late":
            pooled = self.late_width
        if self.reads_sum:
            return (*[rings.attention_width for rings in self.layer_rings[1:]], pooled)
        if self.spec.norm_first:
            last = self.layer_rings[-1]
            squares = last.bits.hidden + last.bounds.variance_high + deviation_bits(self.spec.hidden_size)
            squares += 2 if last.guarded else 0
            return (*[rings.attention_width for rings in self.layer_rings[1:]], max(pooled, squares))
        own = [rings.attention_width for rings in self.layer_rings]
        return (*own[1:], max(own[-1], pooled))

    def run(self, party: Party, x: Secret, is_token: Tensor) -> SecretProtocol[Secret]:
        """Classify a batch: `run_encoder`, then `head`.

        Returns:
            `Secret`: Logits, (B, C) at 12 fraction bits in Z_2^`logit_width`.
        """
        hidden = yield from self.run_encoder(party, x, is_token)
        return (yield from self.head(party, hidden))

    def run_encoder(self, party: Party, x: Secret, is_token: Tensor) -> SecretProtocol[Secret]:
        """The row that heads read after the last layer: the first token's, the mean of all tokens' rows, or the mean
        of what the head's activation gives for them.

        Args:
            party (`Party`): Has the encoder's weights.
            x (`Secret`): Embedding output, (B, T, E) at `bits.hidden` in Z_2^`input_width`. Padding rows are exact
                copies of a token's row, so that padding stays within the bounds of tokens in every layer.
            is_token (`torch.Tensor`): XOR share of the attention mask, uint8 (B, T): 1 for tokens, 0 for padding.

        Returns:
            `Secret`: (B, H) in Z_2^`hidden_width` of bound `hidden_bound`, before the last norm's gamma and beta, or
            with `reads_sum` before the last norm.
        """
        if self.mean is None:
            x = yield from self._layers(party, x, is_token)
            return x.map(lambda words: words[:, 0]).narrow(self.hidden_width).with_bound(self.hidden_bound)
        # The tokens are counted beside the first layers, so that only the sum and the division cost rounds.
        tokens, rows = yield from together(self.mean.count(party, is_token), self._layers(party, x, is_token))
        if self.spec.pooling == "late":
            rows = yield from self.activated(party, rows)
        return (yield from self.mean.run(party, rows, tokens))

    def _layers(self, party: Party, x: Secret, is_token: Tensor) -> SecretProtocol[Secret]:
        """The hidden states after the last layer, (B, T, H), or (B, 1, H) if heads read the first token's only."""
        found: list[Positions] = []

        def positions() -> SecretProtocol[None]:
            found.append((yield from self._positions(party, is_token)))

        # The first layer reads them after its opening of the hidden state, beside which they are made.
        layers = self._norm_first_layers if self.spec.norm_first else self._norm_last_layers
        _, x = yield from together(positions(), layers(party, x, found))
        return x

    def _norm_last_layers(self, party: Party, x: Secret, positions: list[Positions]) -> SecretProtocol[Secret]:
        """Layers with a norm behind each step; `positions` has one entry after the first round."""
        layers = zip(layer_names(self.spec), self.layer_rings, self.output_widths, strict=True)
        for position, (name, rings, width) in enumerate(layers):
            layer = replace(self, rings=rings, layer=position, place=f"{self.prefix}layers.{position}")
            x = yield from layer._layer(party, name, x, positions, width, self._is_last(position))
        return x

    def _is_last(self, position: int) -> bool:
        """Whether only the first token's row is needed behind a layer."""
        spec = self.spec
        # With a capacity, whether the first token's second choice has a place depends on all tokens.
        alone = position not in spec.sparse_layers or spec.expert_capacity is None or spec.experts_per_token == 1
        return position == spec.num_layers - 1 and self.mean is None and alone

    def _norm_first_layers(self, party: Party, x: Secret, positions: list[Positions]) -> SecretProtocol[Secret]:
        """Layers whose norms stand before each step; what they return has passed the last norm, unless heads compute
        it. `positions` has one entry after the first round."""
        total = centred(x, self.rings.bits.mean_weights) if self.spec.norm == "layer" else x
        for position, (name, rings) in enumerate(zip(layer_names(self.spec), self.layer_rings, strict=True)):
            layer = replace(self, rings=rings, layer=position, place=f"{self.prefix}layers.{position}")
            bare = x if self.spec.bare_first and not position else None
            total = yield from layer._norm_first_layer(party, name, total, bare, positions, self._is_last(position))
        if self.reads_sum:
            return total
        last = replace(self, rings=self.layer_rings[-1], place=f"{self.prefix}final norm")
        return (yield from last._norm(party, total, self.output_widths[-1]))

    # Layers.

    def _layer(
        self, party: Party, name: str, x: Secret, positions: list[Positions], output_width: int, last: bool
    ) -> SecretProtocol[Secret]:
        """The layer at position `name`; the last layer computes only the first token, from all keys and values."""
        rings, bits, bound = self.rings, self.rings.bits, self.rings.bounds.residual
        widest = rings.attention_width
        keys = {f"{name}.key": bits.key_weights, f"{name}.value": bits.value_weights}
        queries = {f"{name}.query": bits.query_weights}
        first = x.map(lambda words: words[:, :1]) if last else x
        own = self._linear(party, first, widest, bound, queries, f"{name}.input")
        if last:
            (key, value), (query, residual) = yield from together(self._linear(party, x, widest, bound, keys), own)
        else:
            own.close()
            query, key, value, residual = yield from self._linear(
                party, x, widest, bound, queries | keys, f"{name}.input"
            )
        context = yield from self._attention(party, query, key, value, positions[0])
        (attended,) = yield from self._linear(
            party,
            context,
            rings.attended_width,
            bound,
            {f"{name}.attention_output": bits.attention_output_weights},
        )
        z = attended + residual.truncate(attended.scale)
        x = yield from self._norm(party, z, rings.feed_forward_width, attended=True)
        if self.layer in self.spec.sparse_layers:
            outer, residual = yield from self._mixture(party, name, x, positions[0].is_token)
        else:
            *inner, residual = yield from self._linear(
                party, x, rings.feed_forward_width, rings.bounds.inner, self._inner(name), f"{name}.middle"
            )
            outer = yield from self._outer(party, name, *inner)
        return (yield from self._norm(party, outer + residual.truncate(outer.scale), output_width))

    def _inner(self, name: str) -> dict[str, int]:
        """The first matrices of the feed-forward layer, and their scales."""
        parts = ("intermediate", "gate") if self.spec.gated else ("intermediate",)
        return {f"{name}.{part}": self.rings.bits.intermediate_weights for part in parts}

    def _outer(self, party: Party, name: str, inner: Secret, *gate: Secret) -> SecretProtocol[Secret]:
        """The feed-forward layer behind its first products, of which a gated layer has two."""
        rings, bits = self.rings, self.rings.bits
        if gate:
            active = yield from self._gated(party, inner, *gate)
        else:
            active = yield from self._activation(
                party, self.spec.hidden_act, inner, rings.bounds.inner, bits.inner, bits.active, rings.outer_width
            )
        (outer,) = yield from self._linear(
            party, active, rings.outer_width, rings.bounds.residual, {f"{name}.output": bits.output_weights}
        )
        return outer

    def _gated(self, party: Party, inner: Secret, gate: Secret) -> SecretProtocol[Secret]:
        """The activation of `inner` times `gate`, at `bits.active` in Z_2^`outer_width`."""
        rings, bits, bounds = self.rings, self.rings.bits, self.rings.bounds
        gate = yield from party.checked(gate.truncate(bits.gated).with_bound(bounds.gate), f"{self.place} gate")
        width = rings.activation_width
        product = Product(inner.shape, width, gate.value_bits, rings.gated_width).start(party)
        active, _ = yield from together(
            self._activation(party, self.spec.hidden_act, inner, bounds.inner, bits.inner, bits.gated, width),
            product.open_scalar(gate),
        )
        yield from product.open_rows(active)
        return product.product(bounds.inner + bounds.gate).truncate(bits.active)

    def _norm_first_layer(
        self,
        party: Party,
        name: str,
        total: Secret,
        bare: Secret | None,
        positions: list[Positions],
        last: bool,
    ) -> SecretProtocol[Secret]:
        """The sum of all steps after this layer, (B, T or 1, H); `bare` is what attention reads without a norm."""
        rings, bits, bound = self.rings, self.rings.bits, self.rings.bounds.residual
        width = rings.attention_width
        x = bare if bare is not None else (yield from self._norm(party, total, width))
        keys = {f"{name}.key": bits.key_weights, f"{name}.value": bits.value_weights}
        queries = {f"{name}.query": bits.query_weights}
        if last:
            x_first, total = (one.map(lambda words: words[:, :1]) for one in (x, total))
            (key, value), (query,) = yield from together(
                self._linear(party, x, rings.key_width, bound, keys),
                self._linear(party, x_first, width, bound, queries),
            )
        else:
            query, key, value = yield from self._linear(party, x, width, bound, queries | keys)
        context = yield from self._attention(party, query, key, value, positions[0])
        output = {f"{name}.attention_output": bits.attention_output_weights}
        (attended,) = yield from self._linear(party, context, rings.attended_width, bound, output)
        total = total + attended.truncate(total.scale)
        width, matrices = rings.feed_forward_width, self._inner(name)
        if last:
            inner = yield from self._normed_inner(party, total, width, list(matrices))
        else:
            x = yield from self._norm(party, total, width, attended=True)
            inner = yield from self._linear(party, x, width, rings.bounds.inner, matrices)
        outer = yield from self._outer(party, name, *inner)
        return total + outer.truncate(total.scale)

    def _normed_inner(self, party: Party, total: Secret, width: int, names: list[str]) -> SecretProtocol[list[Secret]]:
        """The feed-forward layer's first products of the first token's row, (B, 1, n)."""
        bounds = self.rings.bounds
        row = total.map(lambda words: words[:, 0]).with_bound(bounds.residual)
        products = yield from self._normed_products(
            party, row, self._attended_squares, names, width, max(bounds.inner, bounds.gate), centre=False
        )
        return [product.map(lambda words: words[:, None]) for product in products]
