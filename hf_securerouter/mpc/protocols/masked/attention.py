# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Self-attention of a layer on shares: scores, softmax and the mix of values, whatever the kind of positions.

A relative attention bias and rotary positions are public places of secret words, and cost no byte: each party adds
entries of its share, or turns its shares by public angles. Terms between contents and positions are products of the
openings of queries and keys with fixed weights. In a window only the scores within it are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...gates.bit_to_ring import BitToRing
from ...gates.exponential import Exponential
from ...gates.gate import SecretProtocol, together
from ...gates.in_range import between, noted
from ...gates.matmul import Matmul
from ...gates.maximum import maximum
from ...gates.party import Party
from ...gates.relative_scores import RelativeScores
from ...gates.relu import ReLU
from ...gates.row_function import RowFunction
from ...gates.row_scale import RowScale
from ...gates.secret import Secret
from ...gates.square import SelectedSquare
from ...gates.windowed import WindowMix, WindowScores
from ...models import EncoderSpec
from ...models.log_buckets import position_entries
from ...models.relative_positions import relative_buckets
from ...models.rotary import rotary_tables, turned_by_quarter
from ...net.network_model import NETWORKS
from ...ring.fixed_point import to_fixed_point
from .folding import layer_names
from .key_places import KeyPlaces
from .ring_widths import RingWidths


@dataclass(frozen=True)
class Positions:
    """What every layer needs to know of the places of tokens and padding.

    Args:
        is_token (`torch.Tensor`): XOR share of the attention mask, uint8 (B, T): 1 for tokens, 0 for padding.
        bias (`torch.Tensor`, *optional*): Share of the relative attention bias, (1 or B, heads, T, T).
        padding (`torch.Tensor`, *optional*): Share of -1 for padding and 0 for tokens, (B, T), in Z_2^2.
    """

    is_token: Tensor
    bias: Tensor | None = None
    padding: Tensor | None = None


class SecureAttention:
    """The attention of one layer; a base class of the encoder, whose fields it reads."""

    spec: EncoderSpec
    rings: RingWidths
    prefix: str
    place: str
    layer: int

    def _heads(self, x: Secret) -> Secret:
        """(B, T, H) to (B, heads, T, H / heads)."""
        spec = self.spec
        return x.map(
            lambda words: words.view(*words.shape[:2], spec.num_heads, spec.head_size).transpose(1, 2).contiguous()
        )

    def _positions(self, party: Party, is_token: Tensor) -> SecretProtocol[Positions]:
        """What all layers add to their scores, made once: at most one round.

        Where scores depend on the place, padding has places of its own, and its scores may lie above those of all
        tokens. Row maxima are of tokens only if padding is moved down: by 1/4 of the range of the scores, in which two
        scores of a row then differ by less than that. 2Quad and 2ReLU need no maxima.
        """
        bias, padding = None, None
        shape = (len(is_token), 1, 1, is_token.shape[1])
        marked = BitToRing(shape, 2).run(party, is_token.view(shape))
        shifted = self.spec.padding_differs and self.rings.softmax == "exact"
        if self.spec.relative_buckets is not None and shifted:
            table, marks = yield from together(self._relative_table(party), marked)
        elif self.spec.relative_buckets is not None:
            table = yield from self._relative_table(party)
        elif shifted:
            marks = yield from marked
        if self.spec.relative_buckets is not None:
            bias = table[..., party.constant(relative_buckets(is_token.shape[1]))]
        if shifted:
            padding = (marks.words - int(party.rank == 0)).view(is_token.shape)
        return Positions(is_token, bias, padding)

    def _relative_table(self, party: Party) -> SecretProtocol[Tensor]:
        """This party's share of the relative attention bias, (1 or B, heads, buckets)."""
        yield from ()
        return party.weights[f"{self.prefix}relative_attention_bias"].share[None]

    def _turned(self, party: Party, x: Secret, scale: int) -> Secret:
        """Queries or keys, (B, T, H), by heads and with rotary positions at `scale` fraction bits; local."""
        if not self.spec.rotary:
            return self._heads(x.truncate(scale))
        x = self._heads(x)
        fraction = self.rings.bits.rotary
        cos, sin = (
            party.constant(table)[: x.shape[-2]]
            for table in _rotary_words(self.rings.length, x.shape[-1], self.spec.rotary[self.layer], fraction)
        )
        words = x.words * cos + turned_by_quarter(x.words) * sin
        return party.secret(words, x.width, x.scale + fraction, x.bound).truncate(scale)

    def _attention(
        self, party: Party, query: Secret, key: Secret, value: Secret, positions: Positions
    ) -> SecretProtocol[Secret]:
        rings, bits = self.rings, self.rings.bits
        query, key = self._turned(party, query, bits.query), self._turned(party, key, bits.key)
        value = self._heads(value.truncate(bits.value)).with_bound(rings.bounds.value)
        value = yield from party.checked(value, f"{self.place} value")
        key = key.map(lambda words: words.transpose(-1, -2).contiguous())
        places = KeyPlaces(rings.length, query.shape[-2], self.spec.windows[self.layer] if self.spec.windows else None)
        window = places.window
        multiply: Matmul | RelativeScores
        if window is None:
            multiply = self._products_of(query.shape, key.shape)
            mix = Matmul(multiply.result, value.shape, rings.mix_width).start(party)
        else:
            multiply = WindowScores(query.shape, key.shape, rings.score_width, window)
            mix = WindowMix(multiply.result, value.shape, rings.mix_width, window).start(party)
        scores, *_ = yield from together(multiply.run(party, query, key), mix.open_right(value), *noted(party, value))
        if positions.bias is not None:
            bias = positions.bias[..., : scores.shape[-2], :]
            scores = scores.map(lambda words: words + bias)
        unshifted = places.within(party, scores.with_bound(rings.guarded_scores))
        if positions.padding is not None:
            shift = places.of_padding(party, positions.padding) << (rings.score_width - 2)
            scores = scores.map(lambda words: words + shift)
        scores = places.within(party, scores)
        scores = yield from party.checked(scores.with_bound(rings.bounds.scores - 1), f"{self.place} scores")
        unnormalized, *_ = yield from together(
            self._unnormalized(party, scores, positions.is_token, places),
            # 2Quad lifts its scores. Shifted ones have a ring of eight times the guard's bound, others of four times.
            *(noted(party, unshifted, 7 if rings.shifts_padding else 6) if rings.softmax != "2quad" else []),
        )

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
        if party.guard is not None and rings.softmax != "exact":  # exponentials sum to 1 or more
            party.guard.later(between(party, sums, low))
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
        if window is not None:
            mixed = mixed.map(window.joined)
        return mixed.map(lambda words: words.transpose(1, 2).reshape(words.shape[0], words.shape[2], -1))

    def _products_of(self, query: tuple[int, ...], key: tuple[int, ...]) -> Matmul | RelativeScores:
        """The gate of all pairs' scores, from the shapes of queries and keys."""
        spec, width = self.spec, self.rings.score_width
        if not spec.position_terms:
            return Matmul(query, key, width)
        table = f"{self.prefix}{layer_names(spec)[self.layer]}.position_"
        return RelativeScores(
            query,
            key,
            width,
            position_entries(key[-1], spec.position_span, spec.position_limit),
            keys=f"{table}keys" if "c2p" in spec.position_terms else None,
            queries=f"{table}queries" if "p2c" in spec.position_terms else None,
        )

    def _unnormalized(
        self, party: Party, scores: Secret, is_token: Tensor, places: KeyPlaces
    ) -> SecretProtocol[Secret]:
        """Unnormalised attention weights, which softmax divides by their row sums; 0 for padding."""
        rings, scale = self.rings, self.rings.bits.scores
        if rings.softmax == "exact":
            return (yield from self._exponentials(party, scores, places.hidden(party, is_token)))
        scores = scores.truncate(scale)
        if rings.softmax == "2quad":
            shifted = scores.add_public(5 << scale).with_bound(rings.bounds.scores - 1)
            square = SelectedSquare(shifted.shape, shifted.value_bits, rings.weights_width)
            return (yield from square.run(party, shifted, is_token))
        # Scores of padding are moved below every token's score, where ReLU is 0.
        bits = rings.bounds.scores + 2 + scale
        shape = (is_token.shape[0], 1, 1, is_token.shape[1])
        alive = yield from BitToRing(shape, bits).run(party, is_token.view(shape))
        offset = (alive.words - int(party.rank == 0)) << (scale + rings.bounds.scores - 1)
        scores = scores.map(lambda words: words + offset).with_bound(rings.bounds.scores)
        return (yield from ReLU(scores.shape, bits, rings.weights_width).run(party, scores))

    def _exponentials(self, party: Party, scores: Secret, hidden: Tensor) -> SecretProtocol[Secret]:
        """exp(-y) with y = top - score and `top` at least the row maximum; 0 where the shared bit `hidden` is 1."""
        rings = self.rings
        unit, fraction = rings.unit, rings.bits.scores
        # y is below half the range of the scores, so the top bit of its ring is free to mark padding.
        range_bits = rings.bounds.scores
        top = yield from maximum(party, scores.truncate(-unit), NETWORKS[rings.network])
        # Truncation changes a score by less than one unit, so with one unit added to the maximum no y is negative.
        top = top.upscale(fraction).map(lambda words: words.unsqueeze(-1)).add_public((1 << (fraction + unit)) + 2)
        y = top - scores.truncate(fraction).narrow(range_bits + fraction)
        # Hidden keys add the ring's top bit, and an XOR share of the ring's top bit is also an additive share.
        top_bit = hidden.to(torch.int64) << (range_bits - 1 + fraction)
        y = y.map(lambda words: words + top_bit)
        gate = Exponential(y.shape, range_bits, fraction, rings.weights_width)
        return (yield from gate.run(party, y))


@lru_cache(maxsize=64)
def _rotary_words(length: int, head_size: int, base: float, fraction: int) -> tuple[Tensor, Tensor]:
    """`rotary_tables` as integers with `fraction` fraction bits, int64."""
    cos, sin = rotary_tables(length, head_size, base)
    return to_fixed_point(cos, fraction), to_fixed_point(sin, fraction)
