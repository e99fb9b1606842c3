# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The one-hot of the largest of K scores, ties to the lowest index.

Scores are truncated once, then every pair is compared exactly, all pairs in one batch: truncating differences pair by
pair would be intransitive, and a near-tie would have no winner. Index i wins when it is at least every later score and
above every earlier one, an AND of K - 1 bits.

Who sees what: every difference is opened under a mask of its own, as are the bits (`gates/compare.py`).
Cost: a comparison for each of the K (K - 1) / 2 pairs, in 3 rounds at k up to 65, and a round of ANDs for every factor
of 4 in K - 1: an AND of all at once would take 2^(K - 1) words from the dealer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ring.randomness import Pad
from .compare import Comparison, and_round, deal_and
from .gate import Dealing, Gate, SecretProtocol
from .party import Party
from .secret import Secret


_FAN_IN = 4


@dataclass(frozen=True)
class Argmax(Gate):
    """XOR shares of the one-hot of the largest score.

    Args:
        rows (`int`): Number of rows.
        choices (`int`): K, at least 2.
        bits (`int`): k; two scores of a row differ by less than 2^(k-1) as integers.
    """

    rows: int
    choices: int
    bits: int

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(self.choices), 2))

    def _wins(self) -> tuple[tuple[int, ...], ...]:
        """For each choice the AND inputs that make it win: p is "the first of pair p wins", p + P is its negation."""
        count = len(self._pairs)
        return tuple(
            tuple(
                sorted(p if pair[0] == choice else p + count for p, pair in enumerate(self._pairs) if choice in pair)
            )
            for choice in range(self.choices)
        )

    def _rounds(self) -> list[tuple[int, tuple[tuple[int, ...], ...]]]:
        """Number of inputs and products of every round of ANDs; the last one has a product for each choice."""
        rounds = []
        count, wanted = 2 * len(self._pairs), list(self._wins())
        while len(wanted[0]) > 1:
            parts = -(-len(wanted[0]) // _FAN_IN)
            products = tuple(inputs[part::parts] for inputs in wanted for part in range(parts))
            rounds.append((count, products))
            count = len(products)
            wanted = [tuple(range(choice * parts, (choice + 1) * parts)) for choice in range(self.choices)]
        return rounds

    def deal(self, dealing: Dealing) -> None:
        shape = (len(self._pairs), self.rows)
        Comparison.deal(dealing, dealing.mask(shape, self.bits), self.bits, 1)
        for inputs, products in self._rounds():
            deal_and(dealing, (self.rows,), inputs, products)

    def run(self, party: Party, scores: Secret) -> SecretProtocol[Tensor]:
        """Compare all pairs, then AND.

        Args:
            party (`Party`): The party.
            scores (`Secret`): (rows, K), already truncated, in a ring of at least k bits.

        Returns:
            `torch.Tensor`: XOR shares of the one-hot, uint8 (K, rows).
        """
        randomness = party.take(self)
        shape = (len(self._pairs), self.rows)
        mask = randomness.mask(shape, self.bits)
        comparison = Comparison(randomness, shape, self.bits)
        columns = scores.narrow(self.bits).words.unbind(-1)
        differences = torch.stack([columns[i] - columns[j] for i, j in self._pairs])
        (opened,) = yield [randomness.open(differences, mask)]
        later_wins = (yield from comparison.run(opened, (0,)))[0]
        earlier_wins = later_wins ^ 1 if party.rank == 0 else later_wins
        bits = torch.cat([earlier_wins, later_wins])
        for _, products in self._rounds():
            bits = torch.stack((yield from and_round(randomness, bits, products)))
        return bits


@dataclass(frozen=True)
class Reveal(Gate):
    """Reveal bits to both parties, from their XOR shares.

    A sharing of zero masks the shares, so that they show nothing beyond the bits. Cost: one bit an element, one round;
    dealer one bit.

    Args:
        shape (`tuple[int, ...]`): Shape of the bits.
    """

    shape: tuple[int, ...]

    def deal(self, dealing: Dealing) -> None:
        dealing.give(torch.zeros(self.shape, dtype=torch.uint8, device=dealing.device), 1)

    def run(self, party: Party, bits: Tensor) -> SecretProtocol[Tensor]:
        """The bits in the clear, uint8, of shape `shape`."""
        randomness = party.take(self)
        (opened,) = yield [randomness.open(bits, Pad(randomness.word(self.shape, 1) & 1, 1))]
        return opened
