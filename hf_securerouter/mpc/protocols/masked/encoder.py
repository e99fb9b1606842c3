# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A post-LayerNorm encoder and its head under the masked protocol.

Rounds of a layer at length 128, by the value that is opened: hidden state; Q, K, V; row maxima (6); the exponent and
its bit (2); unnormalised weights with the row sums; inverses of the row sums; context; input of W_o; LayerNorm (4);
hidden state; GeLU (2); input of W_2; LayerNorm (4). A relative attention bias needs one round before the first layer,
for the place of padding.

Weights are found under `prefix` and a position `before.at`, such as `experts.0.in.0.query`; see `folding.layer_names`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....number_format import deviation_bits
from ...gates.activation import Activation
from ...gates.bit_to_ring import BitToRing
from ...gates.exponential import Exponential
from ...gates.gate import SecretProtocol, together
from ...gates.linear import Linear
from ...gates.matmul import Matmul
from ...gates.maximum import maximum
from ...gates.party import Party
from ...gates.relu import ReLU
from ...gates.row_function import RowFunction
from ...gates.row_scale import RowScale
from ...gates.secret import Secret
from ...gates.square import SelectedSquare, Square
from ...models import EncoderSpec
from ...models.relative_positions import relative_buckets
from ...net.network_model import NETWORKS
from .folding import layer_names
from .ring_widths import RingWidths


NORMAL_BOUND = 5  # log2 bound of normalised values


@dataclass(frozen=True)
class MaskedEncoder:
    """One encoder with its head, for batches of one shape.

    Args:
        spec (`EncoderSpec`): Its public shape.
        rings (`RingWidths`): Fraction bits and ring widths, for inputs of `rings.length` tokens; those of the head
            and, without `layers`, of every layer.
        prefix (`str`): Start of the names of its weights, such as `"experts.0."`.
        layers (`tuple[RingWidths, ...]`): Ring widths of each layer, where they differ.
        head_width (`int`): Ring width that the widest head needs, if several heads read the encoder's hidden state.
        place (`str`): The layer or head whose values are checked, in errors of a debugging session.
    """

    spec: EncoderSpec
    rings: RingWidths
    prefix: str = ""
    layers: tuple[RingWidths, ...] = ()
    head_width: int = 0
    place: str = ""

    @property
    def layer_rings(self) -> tuple[RingWidths, ...]:
        """Ring widths of each layer."""
        return self.layers or (self.rings,) * self.spec.num_layers

    @property
    def input_width(self) -> int:
        """Ring width of the client's shares of the embedding output."""
        return self.layer_rings[0].attention_width

    @property
    def hidden_width(self) -> int:
        """Ring width of the hidden state that heads read."""
        return max(self.layer_rings[-1].attention_width, self.rings.head_width, self.head_width)

    @property
    def output_widths(self) -> tuple[int, ...]:
        """Ring width of each layer's output, which the next layer or the heads open."""
        return (*(rings.attention_width for rings in self.layer_rings[1:]), self.hidden_width)

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
        """The hidden state of the first token after the last layer.

        Args:
            party (`Party`): Has the encoder's weights.
            x (`Secret`): Embedding output, (B, T, E) at `bits.hidden` in Z_2^`input_width`. Padding rows are exact
                copies of a token's row, so that padding stays within the bounds of tokens in every layer.
            is_token (`torch.Tensor`): XOR share of the attention mask, uint8 (B, T): 1 for tokens, 0 for padding.

        Returns:
            `Secret`: (B, H) at `bits.hidden` in Z_2^`hidden_width`, before the last LayerNorm's gamma and beta.
        """
        biases = yield from self._score_biases(party, is_token)
        layers = zip(layer_names(self.spec), self.layer_rings, self.output_widths, strict=True)
        for position, (name, rings, width) in enumerate(layers, 1):
            last = position == self.spec.num_layers
            layer = replace(self, rings=rings, place=f"{self.prefix}layers.{position - 1}")
            x = yield from layer._layer(party, name, x, is_token, biases, width, last)
        return x.map(lambda words: words[:, 0])

    def hidden(self, party: Party, words: Tensor) -> Secret:
        """The hidden state of `run_encoder` as a `Secret`, from its words, (B, H)."""
        return party.secret(words, self.hidden_width, self.rings.bits.hidden, NORMAL_BOUND)

    def head(self, party: Party, hidden: Secret) -> SecretProtocol[Secret]:
        """Logits, (B, C), from the hidden state of `run_encoder`, which several heads may read."""
        rings, bits, name = self.rings, self.rings.bits, self.spec.head.activation
        bound = rings.bounds.head
        (dense,) = yield from self._linear(party, hidden, self.hidden_width, bound, {"head.dense": bits.head_weights})
        width = rings.classifier_width
        own = replace(self, place=f"{self.prefix}head")
        active = yield from own._activation(party, name, dense, bound, bits.head_inner, bits.head_active, width)
        (logits,) = yield from self._linear(
            party, active, width, rings.bounds.logits, {"head.classifier": bits.head_weights}
        )
        return (yield from party.checked(logits.truncate(rings.logits), f"{self.prefix}head logits"))

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
        self,
        party: Party,
        name: str,
        x: Secret,
        is_token: Tensor,
        biases: Sequence[Tensor],
        output_width: int,
        last: bool,
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
        context = yield from self._attention(party, query, key, value, is_token, biases)
        (attended,) = yield from self._linear(
            party,
            context,
            rings.attended_width,
            bound,
            {f"{name}.attention_output": bits.attention_output_weights},
        )
        z = attended + residual.truncate(attended.scale)
        x = yield from self._norm(party, z, rings.feed_forward_width)
        inner, residual = yield from self._linear(
            party,
            x,
            rings.feed_forward_width,
            rings.bounds.inner,
            {f"{name}.intermediate": bits.intermediate_weights},
            f"{name}.middle",
        )
        width = rings.outer_width
        active = yield from self._activation(
            party, self.spec.hidden_act, inner, rings.bounds.inner, bits.inner, bits.active, width
        )
        (outer,) = yield from self._linear(party, active, width, bound, {f"{name}.output": bits.output_weights})
        return (yield from self._norm(party, outer + residual.truncate(outer.scale), output_width))

    def _heads(self, x: Secret) -> Secret:
        """(B, T, H) to (B, heads, T, H / heads)."""
        spec = self.spec
        return x.map(
            lambda words: words.view(*words.shape[:2], spec.num_heads, spec.head_size).transpose(1, 2).contiguous()
        )

    def _score_biases(self, party: Party, is_token: Tensor) -> SecretProtocol[list[Tensor]]:
        """Shares of what every layer adds to its scores: nothing, or a relative attention bias at the scores' scale.

        Padding stands at places of its own, so that the bias can lift its scores above those of all tokens. Row maxima
        are of tokens only if padding is moved down: by 1/4 of the range of the scores, in which two scores of a row
        then differ by less than that. So under exact softmax a second tensor has -1 for padding and 0 for tokens, in
        units of that quarter. 2Quad and 2ReLU need no maxima.

        Returns:
            `list[torch.Tensor]`: Tensors that broadcast to the scores, (B, heads, T, T).
        """
        if self.spec.relative_buckets is None:
            return []
        shape = (len(is_token), 1, 1, is_token.shape[1])
        if self.rings.softmax != "exact":
            table = yield from self._relative_table(party)
        else:
            table, alive = yield from together(
                self._relative_table(party), BitToRing(shape, 2).run(party, is_token.view(shape))
            )
        places = party.constant(relative_buckets(is_token.shape[1]))
        biases = [table[..., places]]
        if self.rings.softmax == "exact":
            biases.append(alive.words - int(party.rank == 0))
        return biases

    def _relative_table(self, party: Party) -> SecretProtocol[Tensor]:
        """This party's share of the relative attention bias, (1 or B, heads, buckets)."""
        yield from ()
        return party.weights[f"{self.prefix}relative_attention_bias"].share[None]

    def _attention(
        self, party: Party, query: Secret, key: Secret, value: Secret, is_token: Tensor, biases: Sequence[Tensor]
    ) -> SecretProtocol[Secret]:
        rings, bits = self.rings, self.rings.bits
        query, key = self._heads(query.truncate(bits.query)), self._heads(key.truncate(bits.key))
        value = self._heads(value.truncate(bits.value)).with_bound(rings.bounds.value)
        value = yield from party.checked(value, f"{self.place} value")
        key = key.map(lambda words: words.transpose(-1, -2).contiguous())
        multiply = Matmul(query.shape, key.shape, rings.score_width)
        mix = Matmul((*multiply.result,), value.shape, rings.mix_width).start(party)
        scores, _ = yield from together(multiply.run(party, query, key), mix.open_right(value))
        for bias, shift in zip(biases, (0, rings.score_width - 2), strict=False):
            added = bias[..., : scores.shape[-2], :] << shift
            scores = scores.map(lambda words, added=added: words + added)
        scores = yield from party.checked(scores.with_bound(rings.bounds.scores - 1), f"{self.place} scores")
        unnormalized = yield from self._unnormalized(party, scores, is_token)

        # Row sums are taken before truncation: truncated weights need not add up to them.
        low, high = rings.row_sum_range
        sums = unnormalized.map(lambda words: words.sum(-1))
        scale = min(max(sums.scale, 5 - low), bits.row_sum)  # the smallest sum keeps at least 5 bits
        sums = sums.truncate(scale) if sums.scale > scale else sums.upscale(scale)
        inverse = RowFunction(
            "reciprocal",
            sums.shape,
            scale=sums.scale,
            low=low,
            high=high,
            result_scale=rings.row_inverse,
        )
        _, divisor = yield from together(
            mix.open_left(unnormalized.truncate(rings.unnormalized)), inverse.run(party, sums)
        )
        sums = yield from party.checked(sums.with_bound(high), f"{self.place} row sums", low)
        context = mix.product(rings.context_bound).truncate(rings.unnormalized)
        context = yield from party.checked(context, f"{self.place} context")
        divide = RowScale(
            context.shape,
            bits=context.value_bits,
            scalar_bits=divisor.value_bits,
            width=rings.attended_width + context.scale + divisor.scale - bits.mixed,
        ).start(party)
        divisor = divisor.map(lambda words: words.unsqueeze(-1))
        yield from together(divide.open_rows(context), divide.open_scalar(divisor))
        mixed = divide.product(rings.bounds.value).truncate(bits.mixed)
        return mixed.map(lambda words: words.transpose(1, 2).reshape(words.shape[0], words.shape[2], -1))

    def _unnormalized(self, party: Party, scores: Secret, is_token: Tensor) -> SecretProtocol[Secret]:
        """Unnormalised attention weights, which softmax divides by their row sums; 0 for padding."""
        rings, scale = self.rings, self.rings.bits.scores
        if rings.softmax == "exact":
            return (yield from self._exponentials(party, scores, is_token))
        scores = scores.truncate(scale)
        # Both rings below are `mix_width` and the bits that truncation to `unnormalized` removes.
        if rings.softmax == "2quad":
            shifted = scores.add_public(5 << scale).with_bound(rings.bounds.scores - 1)
            width = rings.mix_width + 2 * scale - rings.unnormalized
            square = SelectedSquare(shifted.shape, shifted.value_bits, width)
            return (yield from square.run(party, shifted, is_token))
        # Scores of padding are moved below every token's score, where ReLU is 0.
        bits = rings.bounds.scores + 2 + scale
        shape = (is_token.shape[0], 1, 1, is_token.shape[1])
        alive = yield from BitToRing(shape, bits).run(party, is_token.view(shape))
        offset = (alive.words - int(party.rank == 0)) << (scale + rings.bounds.scores - 1)
        scores = scores.map(lambda words: words + offset).with_bound(rings.bounds.scores)
        width = rings.mix_width + scale - rings.unnormalized
        return (yield from ReLU(scores.shape, bits, width).run(party, scores))

    def _exponentials(self, party: Party, scores: Secret, is_token: Tensor) -> SecretProtocol[Secret]:
        """exp(-y) with y = top - score and `top` at least the row maximum; 0 for padding."""
        rings = self.rings
        unit, fraction = rings.unit, rings.bits.scores
        # y is below half the range of the scores, so the top bit of its ring is free to mark padding.
        range_bits = rings.bounds.scores
        top = yield from maximum(party, scores.truncate(-unit), NETWORKS[rings.network])
        # Truncation changes a score by less than one unit, so with one unit added to the maximum no y is negative.
        top = top.upscale(fraction).map(lambda words: words.unsqueeze(-1)).add_public((1 << (fraction + unit)) + 2)
        y = top - scores.truncate(fraction).narrow(range_bits + fraction)
        # Padding adds the ring's top bit, and an XOR share of the ring's top bit is also an additive share.
        padding = (is_token ^ 1 if party.rank == 0 else is_token).to(torch.int64) << (range_bits - 1 + fraction)
        y = y.map(lambda words: words + padding[:, None, None, :])
        gate = Exponential(y.shape, range_bits, fraction, rings.exponential_width)
        return (yield from gate.run(party, y))

    def _norm(self, party: Party, z: Secret, width: int) -> SecretProtocol[Secret]:
        """z / sqrt(mean of z^2), in a ring of `width` bits; z is centred already."""
        rings, bits, bounds = self.rings, self.rings.bits, self.rings.bounds
        scale, inverse_scale = rings.norm_scales(width)
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
        inverse = yield from gate.run(party, variance)
        yield from rows.open_scalar(inverse.map(lambda words: words.unsqueeze(-1)))
        return rows.product(NORMAL_BOUND).truncate(bits.hidden)

    def _activation(
        self, party: Party, name: str, x: Secret, bound: int, opened: int, result: int, width: int
    ) -> SecretProtocol[Secret]:
        """An activation of x, opened at `opened` fraction bits; returns `result` fraction bits in `width` bits."""
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
            return (yield from ReLU(x.shape, x.value_bits, width).run(party, x))
        scale = max(opened, result)
        x = yield from party.checked(x.truncate(scale).with_bound(bound), f"{self.place} activation")
        active = yield from Activation(name, x.shape, bound, opened, scale, width + scale - result).run(party, x)
        return active.truncate(result)
