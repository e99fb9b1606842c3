# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder and its head under the masked protocol: a norm behind each step, as in BERT, or before each step.

Rounds of a layer at length 128, by the value that is opened: hidden state; Q, K, V; row maxima (6); the exponent and
its bit (2); unnormalised weights with the row sums; inverses of the row sums; context; input of W_o; LayerNorm (4);
hidden state; GeLU (2); input of W_2; LayerNorm (4). Where scores depend on the place, that of padding is opened beside
the first hidden state.

With the norm first, hidden states are the sum of all steps, which no gate refreshes: it stays in one ring, wide enough
for the largest sum, and each norm reads it. A gated feed-forward layer takes one round more.

Weights are found under `prefix` and a position `before.at`, such as `experts.0.in.0.query`; see `folding.layer_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ....number_format import deviation_bits
from ...gates.activation import Activation
from ...gates.gate import SecretProtocol, together
from ...gates.in_range import InRange, between
from ...gates.linear import Linear
from ...gates.party import Party
from ...gates.product import Product
from ...gates.relu import ReLU
from ...gates.row_function import RowFunction
from ...gates.row_scale import RowScale
from ...gates.secret import Secret
from ...gates.square import Square
from ...gates.widen import Widen
from ...models import EncoderSpec
from .attention import Positions, SecureAttention
from .folding import layer_names
from .mixture import SecureMixture
from .pooling import MeanPooling
from .ring_widths import RingWidths


NORMAL_BOUND = 5  # log2 bound of normalised values


@dataclass(frozen=True)
class MaskedEncoder(SecureAttention, SecureMixture):
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

    spec: EncoderSpec
    rings: RingWidths
    prefix: str = ""
    layers: tuple[RingWidths, ...] = ()
    head_width: int = 0
    place: str = ""
    layer: int = 0

    @property
    def layer_rings(self) -> tuple[RingWidths, ...]:
        """Ring widths of each layer."""
        return self.layers or (self.rings,) * self.spec.num_layers

    @property
    def input_width(self) -> int:
        """Ring width of the client's shares of the embedding output."""
        first = self.layer_rings[0]
        if not self.spec.norm_first:
            return first.attention_width
        total = first.stream_width + (first.bits.mean_weights if self.spec.norm == "layer" else 0)
        return max(total, first.attention_width) if self.spec.bare_first else total

    @property
    def hidden_width(self) -> int:
        """Ring width of the pooled row that heads read."""
        heads = max(self.rings.head_width(self.spec.head), self.head_width)
        return heads if self.spec.pooling == "mean" else max(self.layer_rings[-1].attention_width, heads)

    @property
    def mean(self) -> MeanPooling | None:
        """The mean of the tokens' rows, if heads read it; None if they read the first token's row."""
        if self.spec.pooling == "first":
            return None
        return MeanPooling(self.rings.length, self.rings.bits.hidden, NORMAL_BOUND, self.hidden_width)

    @property
    def output_widths(self) -> tuple[int, ...]:
        """Ring width of each layer's output, which the next layer, the pooling or the heads open."""
        pooled = self.hidden_width if self.mean is None else self.mean.row_width
        if self.spec.norm_first:
            last = self.layer_rings[-1]
            squares = last.bits.hidden + last.bounds.variance_high + deviation_bits(self.spec.hidden_size)
            return (*[rings.attention_width for rings in self.layer_rings[1:]], max(pooled, squares))
        own = [rings.attention_width for rings in self.layer_rings]
        return (*own[1:], max(own[-1], pooled))

    @property
    def logit_width(self) -> int:
        """Ring width of the shares of the logits."""
        return self.rings.logits + self.rings.bounds.logits + 2

    def run(self, party: Party, x: Secret, is_token: Tensor) -> SecretProtocol[Secret]:
        """Classify a batch: `run_encoder`, then `head`.

        Returns:
            `Secret`: Logits, (B, C) at 12 fraction bits in Z_2^`logit_width`.
        """
        hidden = yield from self.run_encoder(party, x, is_token)
        return (yield from self.head(party, hidden))

    def run_encoder(self, party: Party, x: Secret, is_token: Tensor) -> SecretProtocol[Secret]:
        """The row that heads read after the last layer: the first token's, or the mean of all tokens' rows.

        Args:
            party (`Party`): Has the encoder's weights.
            x (`Secret`): Embedding output, (B, T, E) at `bits.hidden` in Z_2^`input_width`. Padding rows are exact
                copies of a token's row, so that padding stays within the bounds of tokens in every layer.
            is_token (`torch.Tensor`): XOR share of the attention mask, uint8 (B, T): 1 for tokens, 0 for padding.

        Returns:
            `Secret`: (B, H) at `bits.hidden` in Z_2^`hidden_width`, before the last LayerNorm's gamma and beta.
        """
        if self.mean is None:
            x = yield from self._layers(party, x, is_token)
            return x.map(lambda words: words[:, 0])
        # The tokens are counted beside the first layers, so that only the sum and the division cost rounds.
        tokens, rows = yield from together(self.mean.count(party, is_token), self._layers(party, x, is_token))
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
        """Layers whose norms stand before each step; what they return has passed the last norm. `positions` has one
        entry after the first round."""
        total = _centred(x, self.rings.bits.mean_weights) if self.spec.norm == "layer" else x
        for position, (name, rings) in enumerate(zip(layer_names(self.spec), self.layer_rings, strict=True)):
            layer = replace(self, rings=rings, layer=position, place=f"{self.prefix}layers.{position}")
            bare = x if self.spec.bare_first and not position else None
            total = yield from layer._norm_first_layer(party, name, total, bare, positions, self._is_last(position))
        last = replace(self, rings=self.layer_rings[-1], place=f"{self.prefix}final norm")
        return (yield from last._norm(party, total, self.output_widths[-1]))

    def head(self, party: Party, hidden: Secret) -> SecretProtocol[Secret]:
        """Logits, (B, C), from the hidden state of `run_encoder`, which several heads may read."""
        rings, bits, head = self.rings, self.rings.bits, self.spec.head
        own = replace(self, place=f"{self.prefix}head")
        row, width = hidden, self.hidden_width
        if head.dense is not None:
            bound = rings.bounds.head
            (row,) = yield from self._linear(party, hidden, width, bound, {"head.dense": bits.head_weights})
            if head.normalize:
                width = rings.unit_width(row.shape[-1])
                row = yield from own._unit_row(party, row, width)
            else:
                width = rings.classifier_width
                inner = bits.head_active + bound + 3 if rings.widens(head) else width
                row = yield from own._activation(
                    party, head.activation, row, bound, bits.head_inner, bits.head_active, inner
                )
                if inner < width:
                    row = yield from Widen(row.shape, inner, width).run(party, row)
        (logits,) = yield from self._linear(
            party, row, width, rings.bounds.logits, {"head.classifier": bits.head_weights}
        )
        logits = logits.truncate(rings.logits).narrow(self.logit_width)
        if party.guard is not None:
            party.guard.later(InRange(logits.shape).run(party, logits.with_bound(rings.bounds.logits)))
        return (yield from party.checked(logits, f"{self.prefix}head logits"))

    def _unit_row(self, party: Party, dense: Secret, width: int) -> SecretProtocol[Secret]:
        """The activation of a head's first product over its length, up to the constant that folding takes care of."""
        rings, bound = self.rings.of_head_norm, self.rings.bounds.head
        scale, _ = rings.norm_scales(width)
        spec = self.spec if self.spec.head.centred else replace(self.spec, layer_norm_eps=0.0)
        bits, narrow = rings.bits, scale + bound + 3
        row = yield from self._activation(party, spec.head.activation, dense, bound, bits.head_inner, scale, narrow)
        if spec.head.centred:
            row = yield from Widen(row.shape, narrow, narrow + bits.mean_weights).run(party, row)
            row = _centred(row, bits.mean_weights)
        return (yield from replace(self, spec=spec, rings=rings)._norm(party, row, width))

    # Linear steps.

    def _linear(
        self,
        party: Party,
        x: Secret,
        width: int,
        bound: int,
        matrices: Mapping[str, int],
        residual: str | None = None,
    ) -> SecretProtocol[list[Secret]]:
        """x W + b for each matrix (name to scale), and last, if named, the residual gamma x + beta, centred."""
        if residual is not None and self._has(party, residual):
            # With projected embeddings, the residual is one more matrix, with centred outputs.
            matrices, residual = {**matrices, residual: self.rings.bits.gamma}, None
        rows = x.map(lambda words: words.reshape(-1, words.shape[-1])).narrow(width)
        diagonals: dict[str, int] = {}
        if residual is not None:
            matrices = {**matrices, f"{residual}.mean": self.rings.bits.mean_weights}
            diagonals = {f"{residual}.gamma": self.rings.bits.gamma}
        results = yield from self._products(party, rows, matrices, diagonals, bound)
        if residual is not None:
            scaled, mean = results.pop(), results.pop()
            results.append((scaled - mean.truncate(scaled.scale)).with_bound(self.rings.bounds.residual))
        shape = x.shape[:-1]
        return [result.map(lambda words: words.view(*shape, words.shape[-1])) for result in results]

    def _has(self, party: Party, name: str) -> bool:
        """Whether the encoder has a weight of this name."""
        return f"{self.prefix}{name}" in party.weights

    def _products(
        self,
        party: Party,
        rows: Secret,
        matrices: Mapping[str, int],
        diagonals: Mapping[str, int],
        bound: int,
    ) -> SecretProtocol[list[Secret]]:
        """Rows times each weight, plus its bias; `matrices` and `diagonals` map names to scales."""
        weights = {name: party.weights[f"{self.prefix}{name}"] for name in (*matrices, *diagonals)}
        gate = Linear(
            rows=rows.shape[0],
            features=rows.shape[1],
            width=rows.width,
            matrices=tuple((f"{self.prefix}{name}", weights[name].masked.shape[1]) for name in matrices),
            diagonals=tuple(f"{self.prefix}{name}" for name in diagonals),
        )
        results = yield from gate.run(party, rows, (*matrices.values(), *diagonals.values()), bound)
        biases = [party.weights[f"{self.prefix}{name}.bias"].share for name in weights]
        return [
            result.map(lambda words, bias=bias: words + bias) for result, bias in zip(results, biases, strict=True)
        ]

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
            outer, residual = yield from self._feed_forward(party, name, x, f"{name}.middle")
        return (yield from self._norm(party, outer + residual.truncate(outer.scale), output_width))

    def _feed_forward(
        self, party: Party, name: str, x: Secret, residual: str | None = None
    ) -> SecretProtocol[list[Secret]]:
        """The feed-forward layer, and last, if named, the residual of its input."""
        rings, bits = self.rings, self.rings.bits
        matrices = {f"{name}.intermediate": bits.intermediate_weights}
        if self.spec.gated:
            matrices[f"{name}.gate"] = bits.intermediate_weights
        width = rings.feed_forward_width
        inner, *rest = yield from self._linear(party, x, width, rings.bounds.inner, matrices, residual)
        if self.spec.gated:
            active = yield from self._gated(party, inner, rest.pop(0))
        else:
            active = yield from self._activation(
                party, self.spec.hidden_act, inner, rings.bounds.inner, bits.inner, bits.active, rings.outer_width
            )
        (outer,) = yield from self._linear(
            party, active, rings.outer_width, rings.bounds.residual, {f"{name}.output": bits.output_weights}
        )
        return [outer, *rest]

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
                self._linear(party, x, width, bound, keys), self._linear(party, x_first, width, bound, queries)
            )
        else:
            query, key, value = yield from self._linear(party, x, width, bound, queries | keys)
        context = yield from self._attention(party, query, key, value, positions[0])
        output = {f"{name}.attention_output": bits.attention_output_weights}
        (attended,) = yield from self._linear(party, context, rings.attended_width, bound, output)
        total = total + attended.truncate(total.scale)
        x = yield from self._norm(party, total, rings.feed_forward_width, attended=True)
        (outer,) = yield from self._feed_forward(party, name, x)
        return total + outer.truncate(total.scale)

    def _norm(self, party: Party, z: Secret, width: int, attended: bool = False) -> SecretProtocol[Secret]:
        """z / sqrt(mean of z^2), in a ring of `width` bits; z is centred already."""
        rings, bits, bounds = self.rings, self.rings.bits, self.rings.bounds
        scale, inverse_scale = rings.norm_scales(width, attended)
        z = yield from party.checked(z.truncate(scale).with_bound(bounds.residual), f"{self.place} residual")
        row_bits = deviation_bits(z.shape[-1])
        variance_scale = min(bits.variance, 2 * scale + row_bits)
        gate = RowFunction(
            "inverse_sqrt",
            z.shape[:-1],
            scale=variance_scale,
            low=max(bounds.variance_low, 5 - variance_scale),
            high=bounds.variance_high,
            result_scale=inverse_scale,
        )
        rows = RowScale(
            z.shape,
            bits=z.value_bits,
            scalar_bits=gate.width,
            width=width + scale + inverse_scale - bits.hidden,
            squares=True,
        ).start(party)
        yield from rows.open_rows(z)
        squares = rows.sum_of_squares(bounds.variance_high + row_bits)
        eps = round(self.spec.layer_norm_eps * z.shape[-1] * 4.0**scale)
        # The variance is, up to a constant ratio, the sum of squares / 2^row_bits: the scale changes, the words stay.
        variance = party.secret(
            squares.add_public(eps).words, squares.width, squares.scale + row_bits, bounds.variance_high
        ).truncate(variance_scale)
        variance = yield from party.checked(variance, f"{self.place} variance", gate.low)
        if party.guard is not None:
            party.guard.later(between(party, variance, gate.low))
        inverse = yield from gate.run(party, variance)
        yield from rows.open_scalar(inverse.map(lambda words: words.unsqueeze(-1)))
        return rows.product(NORMAL_BOUND).truncate(bits.hidden)

    def _activation(
        self, party: Party, name: str, x: Secret, bound: int, opened: int, result: int, width: int
    ) -> SecretProtocol[Secret]:
        """An activation of x, opened at `opened` fraction bits; returns `result` fraction bits in `width` bits."""
        if name == "identity":
            return x.truncate(result).with_bound(bound).narrow(width)
        if name == "quadratic":
            # x^2 / 8 + x / 4 + 1 / 2 = (x + 1)^2 / 8 + 3 / 8
            x = yield from party.checked(x.truncate(opened).with_bound(bound), f"{self.place} activation")
            shifted = x.add_public(1 << opened)
            grown = width + 2 * opened + 3 - result
            square = yield from Square(shifted.shape, shifted.value_bits, grown).run(party, shifted)
            square = party.secret(square.words, grown, square.scale + 3, 2 * bound - 3)
            return square.add_public(3 << (square.scale - 3)).truncate(result)
        if name == "relu":
            x = yield from party.checked(x.truncate(result).with_bound(bound), f"{self.place} activation")
            lifted = max(width, x.value_bits + 1)  # a product may need a narrower ring than what it multiplies
            return (yield from ReLU(x.shape, x.value_bits, lifted).run(party, x)).narrow(width)
        scale = max(opened, result)
        x = yield from party.checked(x.truncate(scale).with_bound(bound), f"{self.place} activation")
        active = yield from Activation(name, x.shape, bound, opened, scale, width + scale - result).run(party, x)
        return active.truncate(result)


def _centred(x: Secret, fraction: int) -> Secret:
    """x without the mean of each row, taken with `fraction` bits; local, in a ring smaller by as many bits."""
    mean = x.map(lambda words: words.sum(-1, keepdim=True)).times_public(round(2.0**fraction / x.shape[-1]))
    return x - replace(mean, scale=x.scale + fraction).truncate(x.scale)
