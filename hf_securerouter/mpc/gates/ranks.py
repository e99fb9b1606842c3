# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The ranks of distinct secret keys, revealed to both parties, and nothing else.

Every pair is compared, all pairs in one batch, and the bits are revealed. They must be those of an order, or they
would show that the keys are too large for their ring: the top bit of a difference mod 256 puts -70 below 0, 0 below
70, and 70 below -70. So keys are compared as signed numbers of k bits: by their signs where these differ, else by
their difference, which then does not overflow. Any distinct residues have ranks, whatever was promised of their size.

Ranks of keys that were shuffled secretly are a uniform permutation, whatever the keys are, as long as no two keys are
equal: a tie would show, so keys must be made distinct before the shuffle.

Who sees what: every key and every difference is opened under a mask of its own, as are the bits (`gates/compare.py`).
Cost: a comparison for each of the B keys and B (B - 1) / 2 pairs in 3 rounds at k up to 65, a round of one AND a pair,
and one round to reveal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .argmax import Reveal
from .compare import Comparison, and_round, deal_and
from .gate import Dealing, Gate, SecretProtocol
from .party import Party
from .secret import Secret


@dataclass(frozen=True)
class Order(Gate):
    """XOR shares of whether the first of a pair of keys is smaller, for every pair.

    Args:
        count (`int`): B, at least 2.
        bits (`int`): k; keys are compared as signed numbers of k bits.
    """

    count: int
    bits: int

    @property
    def pairs(self) -> int:
        """B (B - 1) / 2."""
        return self.count * (self.count - 1) // 2

    def deal(self, dealing: Dealing) -> None:
        Comparison.deal(dealing, dealing.mask((self.pairs + self.count,), self.bits), self.bits, 1)
        deal_and(dealing, (self.pairs,), 2, ((0, 1),))

    def run(self, party: Party, keys: Secret, first: Tensor, second: Tensor) -> SecretProtocol[Tensor]:
        """Compare keys and differences with 0, then AND.

        Args:
            party (`Party`): The party.
            keys (`Secret`): (B,), in a ring of at least k bits.
            first (`torch.Tensor`), second (`torch.Tensor`): Indices of the keys of every pair, int64.

        Returns:
            `torch.Tensor`: XOR shares, uint8 (pairs,).
        """
        randomness = party.take(self)
        shape = (self.pairs + self.count,)
        mask = randomness.mask(shape, self.bits)
        comparison = Comparison(randomness, shape, self.bits)
        words = keys.narrow(self.bits).words
        both = torch.cat([words[first] - words[second], words])
        (opened,) = yield [randomness.open(both, mask)]
        (negative,) = yield from comparison.run(opened, (0,))
        smaller, signs = negative[: self.pairs], negative[self.pairs :]
        # Where the signs differ, the negative key is smaller, whatever the difference says.
        differ, wrong = signs[first] ^ signs[second], smaller ^ signs[first]
        (turned,) = yield from and_round(randomness, torch.stack([differ, wrong]), ((0, 1),))
        return smaller ^ turned


def ranks(party: Party, keys: Secret, bits: int) -> SecretProtocol[Tensor]:
    """Compare all pairs of keys and reveal their order.

    Args:
        party (`Party`): The party.
        keys (`Secret`): (B,), distinct mod 2^k, in a ring of at least k bits.
        bits (`int`): k.

    Returns:
        `torch.Tensor`: int64 (B,): how many keys are larger than each, as signed numbers of k bits. A permutation of
        0, ..., B - 1, and public.
    """
    count = keys.words.shape[0]
    if count == 1:
        return torch.zeros(1, dtype=torch.int64, device=keys.words.device)
    first, second = torch.triu_indices(count, count, 1, device=keys.words.device).unbind(0)
    gate = Order(count, bits)
    smaller = yield from gate.run(party, keys, first, second)
    (revealed,) = yield from Reveal((1, gate.pairs)).run(party, smaller[None])
    revealed = revealed.to(torch.int64)
    larger = torch.zeros(count, dtype=torch.int64, device=revealed.device)
    return larger.index_add(0, first, revealed).index_add(0, second, 1 - revealed)
