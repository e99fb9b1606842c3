# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The maximum of a row of small integers, by a tournament in Z_2^8.

Every value is opened once, c_i = x_i + r_i. A pair is compared locally: x_i - x_j is c_i - c_j minus the dealer's
r_i - r_j, whose thermometer tells in which half of the ring the difference is; r_i - r_j itself is never opened. The
bits of a group are opened under mask bits, and the winner,

    sum over i of x_i * product over j of [x_i beats x_j],

is a public combination of the dealer's products of those mask bits with each other and with r_i. Winners enter the
next level under fresh masks. Ties go to the lower index.

Who sees what: c_i is uniform because r_i is; every opened bit has a mask bit of its own.
Cost: 128 values: 1.6 B each, 6 rounds (groups of 4, 4 and 8). Dealer 100 B a value.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..net.network_model import NETWORKS, NetworkModel
from .bits import Thermometer, deal_thermometer
from .gate import Dealing, Gate, SecretProtocol
from .party import Party
from .secret import Secret


BITS = 8


@lru_cache(maxsize=256)
def groups_of(values: int, rows: int = 1, network: NetworkModel = NETWORKS["lan"]) -> tuple[int, ...]:
    """Sizes of the groups of each level, the cheapest on a network.

    Larger groups save rounds and need more from the dealer: s (s - 1) / 2 thermometers and 2^s s words for s values.

    Args:
        values (`int`): Values in a row.
        rows (`int`): Rows of the batch.
        network (`NetworkModel`): The cost of rounds and bytes.
    """
    if values == 1:
        return ()
    best: tuple[float, tuple[int, ...]] = (math.inf, ())
    for size in range(2, 9):
        groups = -(-values // size)
        levels = (size, *groups_of(groups, rows, network))
        best = min(best, (_seconds(values, rows, levels, network), levels))
    return best[1]


def _seconds(values: int, rows: int, levels: tuple[int, ...], network: NetworkModel) -> float:
    total = 0.0
    for size in levels:
        values = -(-values // size)
        pairs = size * (size - 1) / 2
        dealt = 32 * pairs + size * 2 * (2 ** (size - 1) - 1)
        total += network.seconds(2, rows * values * (size + pairs / 8), rows * values * dealt)
    return total


@dataclass(frozen=True)
class Knockout(Gate):
    """One level of the tournament: the maximum of each group.

    Args:
        shape (`tuple[int, ...]`): (..., groups, size).
    """

    shape: tuple[int, ...]

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(self.shape[-1]), 2))

    def _own_pairs(self, player: int) -> list[int]:
        return [index for index, pair in enumerate(self._pairs) if player in pair]

    def deal(self, dealing: Dealing) -> None:
        masks = dealing.mask(self.shape, BITS).unbind(-1)
        bits = dealing.mask((len(self._pairs), *self.shape[:-1]), 1)
        first, second = (torch.stack([masks[pair[side]] for pair in self._pairs]) for side in (0, 1))
        deal_thermometer(dealing, (first - second).to(torch.int64), 1 << BITS)
        for player, mask in enumerate(masks):
            products = _expand([(torch.ones_like(mask), bits[index]) for index in self._own_pairs(player)])[1:]
            dealing.give(products, BITS)
            dealing.give(products * mask, BITS)

    def run(self, party: Party, x: Secret) -> SecretProtocol[Secret]:
        """Open the values, then the bits under mask bits.

        Args:
            party (`Party`): The party.
            x (`Secret`): In Z_2^8; any two values of a group differ by less than 2^7.

        Returns:
            `Secret`: The maxima in Z_2^8, (..., groups).
        """
        randomness = party.take(self)
        mask = randomness.mask(self.shape, BITS)
        pairs = (len(self._pairs), *self.shape[:-1])
        bit_mask = randomness.mask(pairs, 1)
        index = Thermometer(randomness, pairs, 1 << BITS)
        (opened,) = yield [randomness.open(x.narrow(BITS).words.to(torch.uint8), mask)]
        values, masks = opened.unbind(-1), mask.words.unbind(-1)
        first, second = (torch.stack([values[pair[side]] for pair in self._pairs]) for side in (0, 1))
        beats = index.between((first - second).to(torch.int64), 0, 1 << (BITS - 1))
        (flips,) = yield [randomness.open(beats, bit_mask)]
        total = torch.zeros(self.shape[:-1], dtype=torch.uint8, device=flips.device)
        for player, value in enumerate(values):
            # [player wins] is flip + (1 - 2 flip) * mask bit for the first of a pair, one minus that for the second.
            wins = [(flips[index], self._pairs[index][0] == player) for index in self._own_pairs(player)]
            factors = _expand([(bit, 1 - 2 * bit) if is_first else (1 - bit, 2 * bit - 1) for bit, is_first in wins])
            shape = (len(factors) - 1, *self.shape[:-1])
            products, masked = randomness.word(shape, BITS), randomness.word(shape, BITS)
            total += (factors[1:] * (products * value - masked)).sum(0, dtype=torch.uint8)
            own = value - masks[player] if party.rank == 0 else -masks[player]
            total += factors[0] * own
        return party.secret(total.to(torch.int64), BITS, x.scale, x.bound)


def _expand(factors: list[tuple[Tensor, Tensor]]) -> Tensor:
    """All products of one entry of each pair: row m takes the second entry where bit i of m is set."""
    rows = torch.stack(factors[0])
    for without, chosen in factors[1:]:
        rows = torch.cat([rows * without, rows * chosen])
    return rows


def maximum(party: Party, x: Secret, network: NetworkModel = NETWORKS["lan"]) -> SecretProtocol[Secret]:
    """The maximum over the last dimension.

    Args:
        party (`Party`): The party.
        x (`Secret`): (..., n) in a ring of at least 8 bits; any two values of a row differ by less than 2^7.
        network (`NetworkModel`): The network for which the sizes of the groups are chosen.

    Returns:
        `Secret`: (...,) in Z_2^8. Two rounds a level.
    """
    x = x.narrow(BITS)
    for size in groups_of(x.shape[-1], math.prod(x.shape[:-1]), network):
        short = -x.shape[-1] % size
        if short:
            # Fill the last group with copies of the first values, which do not change the maximum.
            x = x.map(lambda words, short=short: torch.cat([words, words[..., :short]], -1))
        shape = (*x.shape[:-1], x.shape[-1] // size, size)
        x = yield from Knockout(shape).run(party, x.map(lambda words, shape=shape: words.reshape(shape)))
    return x.map(lambda words: words[..., 0])
