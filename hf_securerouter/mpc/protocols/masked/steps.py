# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The steps that layers and heads are made of: products with weights, norms and activations.

A norm in front of a matrix takes five rounds: its input, the variance (2), the inverse deviation, the normalised row.
Of one row a text the product is taken before the division, of a copy of the row in a wider ring, so that the
normalised row is never opened:

    norm(z) W + b = (z W) / deviation(z) + b.

That takes four rounds, and more bits; where all rows are read, it would open the products of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from ....number_format import deviation_bits
from ...gates.activation import Activation
from ...gates.gate import SecretProtocol, together
from ...gates.in_range import between
from ...gates.linear import Linear
from ...gates.party import Party
from ...gates.relu import ReLU
from ...gates.row_function import RowFunction
from ...gates.row_scale import RowScale
from ...gates.secret import Secret
from ...gates.square import Square
from ...gates.widen import Widen
from ...models import EncoderSpec
from ...ring.words import MAX_BITS
from .ring_widths import RingWidths


NONE: Mapping[str, int] = MappingProxyType({})


class Squares(NamedTuple):
    """log2 of the least, the largest and a usual mean square of a row that a norm divides."""

    low: int
    high: int
    usual: int


@dataclass(frozen=True)
class SecureSteps:
    """The steps of one encoder and its head; a base class of `MaskedEncoder`, which describes the fields."""

    spec: EncoderSpec
    rings: RingWidths
    prefix: str = ""
    layers: tuple[RingWidths, ...] = ()
    head_width: int = 0
    place: str = ""
    layer: int = 0

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
        apart = yield from self._without_biases(party, rows, matrices, bound, diagonals)
        return [product.map(lambda words, bias=bias: words + bias.words) for product, bias in apart]

    def _without_biases(
        self,
        party: Party,
        rows: Secret,
        matrices: Mapping[str, int],
        bound: int,
        diagonals: Mapping[str, int] = NONE,
    ) -> SecretProtocol[list[tuple[Secret, Secret]]]:
        """Rows times each weight, and its bias, which broadcasts to the product."""
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
            (result, party.secret(bias, result.width, result.scale, bound))
            for result, bias in zip(results, biases, strict=True)
        ]

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
        return rows.product(normal_bound(z.shape[-1])).truncate(bits.hidden)

    def _normed_width(self, squares: Squares, bound: int) -> int:
        """Ring width in which `_normed_products` multiplies a row of a mean square up to 2^`squares.high` with a
        matrix. Quotients are below 2^`bound`, with their biases and without."""
        bits = self.rings.bits
        return bits.hidden + bits.head_weights + bound + max(0, -(-squares.high // 2)) + 2

    def _squared_width(self, squares: Squares, features: int, scale: int, centre: bool = False) -> int:
        """Ring width of the sum of the squares of a row at `scale` fraction bits; of a row that is centred first,
        times the square of its width."""
        return 2 * scale + (3 if centre else 1) * deviation_bits(features) + squares.high + 2

    def _normed_products(
        self, party: Party, z: Secret, squares: Squares, names: Sequence[str], width: int, bound: int, centre: bool
    ) -> SecretProtocol[list[Secret]]:
        """As `_linear` of `_norm`, for one row of each input: z W / sqrt(mean of z^2) + b, in four rounds.

        To centre a row z of n numbers and their sum s, n z - s is used, exactly n times the centred row: a norm does
        not depend on the factor. Its squares add up to n (n sum of z^2 - s^2).

        Args:
            party (`Party`): The party.
            z (`Secret`): (B, H) at `bits.hidden`; to be centred, in a ring that holds the sum of a row.
            squares (`Squares`): Bounds of the mean square of a row, once it is centred.
            names (`Sequence[str]`): The weights, which have the scale of a head's.
            width (`int`): Ring width of the results, which have the scale of `_linear`.
            bound (`int`): log2 bound of the results.
            centre (`bool`): Whether the mean of each row is removed first.
        """
        rings, scale, weights = self.rings, self.rings.bits.hidden, self.rings.bits.head_weights
        least, product_scale = self._normed_width(squares, bound), scale + weights
        inner = max(least, width)  # the biases are added to the results
        z = yield from party.checked(z, f"{self.place} residual")
        before, after = rings.product_scales(width, product_scale, squares.usual)
        split = self._centred_squares if centre else self._squares
        row, mean = yield from split(party, z, squares, inner)
        mean = mean.truncate(min(rings.bits.variance, mean.scale))
        low = max(squares.low, 5 - mean.scale)
        mean = yield from party.checked(mean, f"{self.place} variance", low)
        if party.guard is not None:
            party.guard.later(between(party, mean, low))
        inverse = RowFunction(
            "inverse_sqrt", z.shape[:-1], scale=mean.scale, low=low, high=squares.high, result_scale=after
        )
        products, factor = yield from together(
            self._without_biases(party, row.narrow(inner), dict.fromkeys(names, weights), bound),
            inverse.run(party, mean),
        )
        scalar, steps, divisions = factor.map(lambda words: words.unsqueeze(-1)), [], []
        for product, _ in products:
            own = product.with_bound(least - product_scale - 2).truncate(before)
            divide = RowScale(
                own.shape, own.value_bits, factor.value_bits, width + before + after - product_scale
            ).start(party)
            steps += [divide.open_rows(own), divide.open_scalar(scalar)]
            divisions.append(divide)
        yield from together(*steps)
        return [
            (divide.product(bound).truncate(product_scale) + bias.narrow(width)).with_bound(bound)
            for divide, (_, bias) in zip(divisions, products, strict=True)
        ]

    def _squares(self, party: Party, z: Secret, squares: Squares, inner: int) -> SecretProtocol[tuple[Secret, Secret]]:
        """A row in a ring of `inner` bits, and its mean square, up to a constant ratio; one round."""
        features = z.shape[-1]
        width = max(inner, self._squared_width(squares, features, z.scale))
        found, row = yield from Square(z.shape, z.value_bits, width).both(party, z)
        eps = round(self.spec.layer_norm_eps * features * 4.0**z.scale)
        total = found.map(lambda words: words.sum(-1)).add_public(eps)
        return row, replace(total, scale=total.scale + deviation_bits(features), bound=squares.high)

    def _centred_squares(
        self, party: Party, z: Secret, squares: Squares, inner: int
    ) -> SecretProtocol[tuple[Secret, Secret]]:
        """As `_squares`, of a row whose mean is removed; with fewer fraction bits of squares, where rows are wide."""
        features = z.shape[-1]
        row_bits = deviation_bits(features)
        scale = min(z.scale, (MAX_BITS - self._squared_width(squares, features, 0, True)) // 2)
        width = self._squared_width(squares, features, scale, True)
        small = z.truncate(scale)
        sums = small.map(lambda words: words.sum(-1, keepdim=True)).with_bound(small.bound + row_bits)
        row, of_row, of_sum = yield from together(
            Widen(z.shape, z.value_bits, inner + row_bits).run(party, z),
            Square(small.shape, small.value_bits, width).run(party, small),
            Square(sums.shape, sums.value_bits, width).run(party, sums),
        )
        row = row.times_public(features) - row.map(lambda words: words.sum(-1, keepdim=True))
        row = replace(row, scale=z.scale + row_bits).truncate(z.scale)
        eps = round(self.spec.layer_norm_eps * features**3 * 4.0**scale)
        words = (of_row.words.sum(-1) * features - of_sum.words[..., 0]) * features
        total = party.secret(words, width, 2 * scale + 3 * row_bits, squares.high)
        return row, total.add_public(eps)

    def _activation(
        self, party: Party, name: str, x: Secret, bound: int, opened: int, result: int, width: int
    ) -> SecretProtocol[Secret]:
        """An activation of x, opened at `opened` fraction bits; returns `result` fraction bits in `width` bits."""
        if name == "identity":
            return x.truncate(result).with_bound(bound).narrow(width)
        if name == "quadratic":
            # x^2 / 8 + x / 4 + 1 / 2
            x = yield from party.checked(x.truncate(opened).with_bound(bound), f"{self.place} activation")
            grown = width + 2 * opened + 3 - result
            square, same = yield from Square(x.shape, x.value_bits, grown).both(party, x)
            words = square.words + (same.words << (opened + 1))
            found = party.secret(words, grown, square.scale + 3, 2 * bound - 2)
            return found.add_public(1 << (found.scale - 1)).truncate(result)
        if name == "relu":
            x = yield from party.checked(x.truncate(result).with_bound(bound), f"{self.place} activation")
            lifted = max(width, x.value_bits + 1)  # a product may need a narrower ring than what it multiplies
            return (yield from ReLU(x.shape, x.value_bits, lifted).run(party, x)).narrow(width)
        scale = max(opened, result)
        x = yield from party.checked(x.truncate(scale).with_bound(bound), f"{self.place} activation")
        active = yield from Activation(name, x.shape, bound, opened, scale, width + scale - result).run(party, x)
        return active.truncate(result)


def normal_bound(features: int) -> int:
    """log2 bound of a normalised row's values, which reach the root of its width; 5 up to a width of 1024."""
    return max(5, -(-deviation_bits(features) // 2))


def centred(x: Secret, fraction: int) -> Secret:
    """x without the mean of each row, taken with `fraction` bits; local, in a ring smaller by as many bits."""
    mean = x.map(lambda words: words.sum(-1, keepdim=True)).times_public(round(2.0**fraction / x.shape[-1]))
    return x - replace(mean, scale=x.scale + fraction).truncate(x.scale)
