# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Products with fixed, secret weights.

The parties know D = W - B. Per query they hold shares of a mask A and of A.B, open E = x + A and get

    [x W] = E [W] - ([A] D + [A B]),

whose bracket is computed before the query arrives. One opening serves every weight that multiplies x, each with its
own A.B, and elementwise weights too.

Who sees what: both parties see E, uniform because A is; D is uniform because B is. The dealer sees A and B only.
Cost: K bits an element of x, one round, however many weights; one ring matmul a party. Dealer: K bits an output.

Reference:
    Beaver triples with a constant operand opened once (Beaver, Efficient multiparty protocols using circuit
    randomization, 1991).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import SecureRouterError
from ..ring.matmul import ring_matmul
from ..ring.randomness import Pad
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .party import Party
from .secret import Secret
from .weight_share import WeightShare


@dataclass(frozen=True)
class Linear(Gate):
    """x W for several fixed weights.

    Args:
        rows (`int`): Rows of x.
        features (`int`): Columns of x.
        width (`int`): K, the ring of the opening and of the results.
        matrices (`tuple[tuple[str, int], ...]`): Names of weights of shape (features, n), and n.
        diagonals (`tuple[str, ...]`): Names of weights of shape (features,), multiplied elementwise.
    """

    rows: int
    features: int
    width: int
    matrices: tuple[tuple[str, int], ...]
    diagonals: tuple[str, ...] = ()

    def deal(self, dealing: Dealing) -> None:
        mask = dealing.mask((self.rows, self.features), self.width)
        for name, _ in self.matrices:
            dealing.give(ring_matmul(mask, dealing.weight_mask(name), self.width), self.width)
        for name in self.diagonals:
            dealing.give(mask * dealing.weight_mask(name), self.width)

    def prepare(self, randomness: Tuple, weights: Mapping[str, WeightShare]) -> tuple[Pad, list[Tensor]]:
        mask = randomness.mask((self.rows, self.features), self.width)
        brackets = [
            ring_matmul(mask.words, weights[name].masked, self.width).add_(
                randomness.word((self.rows, columns), self.width)
            )
            for name, columns in self.matrices
        ]
        brackets += [
            (mask.words * weights[name].masked).add_(randomness.word(mask.words.shape, self.width))
            for name in self.diagonals
        ]
        return mask, brackets

    def run(self, party: Party, x: Secret, scales: tuple[int, ...], bound: int) -> SecretProtocol[list[Secret]]:
        """Open x once and multiply.

        Args:
            party (`Party`): The party, with the weights' shares.
            x (`Secret`): Shape (rows, features), in a ring of at least K bits.
            scales (`tuple[int, ...]`): Fraction bits of each weight, matrices first.
            bound (`int`): Bound of every result.

        Returns:
            `list[Secret]`: (rows, n) for each matrix, then (rows, features) for each diagonal, in Z_2^K at scale
            x.scale + the weight's.

        Raises:
            `SecureRouterError`: x is shared in a ring of fewer than K bits.
        """
        if x.width < self.width:
            raise SecureRouterError(f"`{self.name}` opens {self.width} bits of a share that has {x.width}.")
        randomness = party.take(self)
        mask, brackets = randomness.prepared
        (opened,) = yield [randomness.open(x.words, mask)]
        names = [name for name, _ in self.matrices]
        products = [ring_matmul(opened, party.weights[name].share, self.width) for name in names]
        products += [opened * party.weights[name].share for name in self.diagonals]
        return [
            party.secret(product.sub_(bracket), self.width, x.scale + scale, bound)
            for product, bracket, scale in zip(products, brackets, scales, strict=True)
        ]
