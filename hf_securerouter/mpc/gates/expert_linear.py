# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Products with the fixed, secret weights of all experts of a mixture, each with rows of its own or all with the same.

It is `Linear` for a batch of weights that stand one above the other in one tensor: with x + A open and shares of A and
of A B_e, the product of expert e is E [W_e] - ([A] D_e + [A B_e]), whose bracket is computed before the query arrives.

Who sees what: both parties see E, uniform because A is; which rows are of use is secret and changes nothing.
Cost: K bits an element of x, one round. Dealer: K bits an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..ring.matmul import ring_matmul
from ..ring.randomness import Pad
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .party import Party
from .secret import Secret
from .weight_share import WeightShare


@dataclass(frozen=True)
class ExpertLinear(Gate):
    """x_e W_e for every expert e.

    Args:
        experts (`int`): N.
        rows (`int`): R, the rows of each expert.
        features (`int`): F, columns of x.
        columns (`int`): n, columns of a result.
        width (`int`): K, the ring of the opening and of the result.
        weight (`str`): Name of the weight of shape (N F, n).
        same (`bool`): Whether all experts multiply the same rows, which are opened once.
    """

    experts: int
    rows: int
    features: int
    columns: int
    width: int
    weight: str
    same: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of x: (N, R, F), or (1, R, F) for the same rows."""
        return (1 if self.same else self.experts, self.rows, self.features)

    def _by_expert(self, words: Tensor) -> Tensor:
        return words.view(self.experts, self.features, self.columns)

    def deal(self, dealing: Dealing) -> None:
        mask = dealing.mask(self.shape, self.width)
        weights = self._by_expert(dealing.weight_mask(self.weight))
        dealing.give(ring_matmul(mask, weights, self.width), self.width)

    def prepare(self, randomness: Tuple, weights: Mapping[str, WeightShare]) -> tuple[Pad, Tensor]:
        mask = randomness.mask(self.shape, self.width)
        masked = self._by_expert(weights[self.weight].masked)
        bracket = ring_matmul(mask.words, masked, self.width)
        return mask, bracket.add_(randomness.word((self.experts, self.rows, self.columns), self.width))

    def run(self, party: Party, x: Secret, scale: int, bound: int) -> SecretProtocol[Secret]:
        """Open x and multiply.

        Args:
            party (`Party`): The party, with the weight's share.
            x (`Secret`): Of shape `shape`, in a ring of at least K bits.
            scale (`int`): Fraction bits of the weight.
            bound (`int`): Bound of the result.

        Returns:
            `Secret`: (N, R, n) in Z_2^K at scale x.scale + `scale`.
        """
        randomness = party.take(self)
        mask, bracket = randomness.prepared
        (opened,) = yield [randomness.open(x.narrow(self.width).words, mask)]
        product = ring_matmul(opened, self._by_expert(party.weights[self.weight].share), self.width)
        return party.secret(product.sub_(bracket), self.width, x.scale + scale, bound)
