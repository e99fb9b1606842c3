# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Scores of queries and keys that also depend on their distance, by tables of fixed, secret weights.

With Q and K the queries and keys, and P and R tables with an entry for each distance, the score of a pair at distance
t is Q K + Q P_t + K R_t. Q and K are opened as in `matmul.py`: E = Q + A, F = K + B. They are then multiplied by the
tables as in `linear.py`: the parties know D = P - C, and Q P_t = E [P_t] - ([A] D_t + [A C_t]), likewise for R. Which
entry a pair reads is public, so that all three products are summed pair by pair, by the dealer too, who gives one word
for A B - A C_t - B C'_t.

Who sees what: both parties see E and F, uniform because A and B are; D is uniform because C is. The dealer sees A, B
and C only.
Cost: K bits an element of Q and of K, in one round, whatever tables there are. Dealer: K bits a score.

Reference:
    `matmul.py` and `linear.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..ring.matmul import ring_matmul
from ..ring.randomness import Pad
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .party import Party
from .secret import Secret
from .weight_share import WeightShare


@dataclass(frozen=True)
class RelativeScores(Gate):
    """Q K + Q P_t + K R_t.

    Args:
        left (`tuple[int, ...]`): Shape of Q, (B, heads, n, d), with n the T queries of a row or its first few.
        right (`tuple[int, ...]`): Shape of K, (B, heads, d, T).
        width (`int`): K, the ring of both openings and of the scores.
        entries (`tuple[int, ...]`): The tables' entry for each distance of a query from a key, from -(T - 1) to T - 1.
        keys (`str`, *optional*): Name of P, (heads, d, entries), which queries meet; None without this term.
        queries (`str`, *optional*): Name of R, (heads, d, entries), which keys meet; None without this term.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    width: int
    entries: tuple[int, ...]
    keys: str | None = None
    queries: str | None = None

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of the scores."""
        return (*self.left[:-1], self.right[-1])

    def deal(self, dealing: Dealing) -> None:
        query, key = dealing.mask(self.left, self.width), dealing.mask(self.right, self.width)
        product = ring_matmul(query, key, self.width)
        dealing.give(product.sub_(self._of_positions(query, key, dealing.weight_mask)), self.width)

    def prepare(self, randomness: Tuple, weights: Mapping[str, WeightShare]) -> tuple[Pad, Pad, Tensor]:
        query, key = randomness.mask(self.left, self.width), randomness.mask(self.right, self.width)
        bracket = self._of_positions(query.words, key.words, lambda name: weights[name].masked).neg_()
        return query, key, bracket.add_(randomness.word(self.result, self.width))

    def run(self, party: Party, query: Secret, key: Secret) -> SecretProtocol[Secret]:
        """Open both operands in one round, and multiply them by each other and by the tables.

        Args:
            party (`Party`): The party, with the tables' shares, of which P has the scale of `key`, R that of `query`.
            query (`Secret`): Of shape `left`, in a ring of at least K bits.
            key (`Secret`): Of shape `right`, in a ring of at least K bits.

        Returns:
            `Secret`: Shape `result`, in Z_2^K at scale query.scale + key.scale; the bound is the query's.
        """
        randomness = party.take(self)
        left_mask, right_mask, bracket = randomness.prepared
        left, right = yield [
            randomness.open(query.narrow(self.width).words, left_mask),
            randomness.open(key.narrow(self.width).words, right_mask),
        ]
        # P0's E F - E B0 is one product: E (F - B0).
        own = right - right_mask.words if party.rank == 0 else -right_mask.words
        words = ring_matmul(left, own, self.width).sub_(ring_matmul(left_mask.words, right, self.width))
        words.add_(self._of_positions(left, right, lambda name: party.weights[name].share)).add_(bracket)
        return party.secret(words, self.width, query.scale + key.scale, query.bound)

    def _of_positions(self, query: Tensor, key: Tensor, table: Callable[[str], Tensor]) -> Tensor:
        """The products of both operands with the tables' entries, summed pair by pair: of shape `result`."""
        used, column = (values.to(query.device) for values in _columns(self.entries, self.left[-2], self.right[-1]))
        total = query.new_zeros(self.result)
        if self.keys is not None:
            products = ring_matmul(query, table(self.keys)[..., used], self.width)
            total += products.gather(-1, column.expand(self.result))
        if self.queries is not None:
            products = ring_matmul(key.mT.contiguous(), table(self.queries)[..., used], self.width)
            total += products.mT.gather(-2, column.expand(self.result))
        return total


@lru_cache(maxsize=64)
def _columns(entries: tuple[int, ...], queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """The entries that some pair reads, and which of them each pair reads, int64 (queries, keys)."""
    distance = torch.arange(queries)[:, None] - torch.arange(keys)
    used, place = torch.tensor(entries)[distance + keys - 1].unique(return_inverse=True)
    return used, place
