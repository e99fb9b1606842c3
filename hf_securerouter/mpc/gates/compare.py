# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Exact comparison with public thresholds.

Of a masked value c = x + r mod 2^k, [x < t] is the top bit of (c - t) - r: the xor of both top bits and of the borrow
[low bits of c - t < low bits of r]. Blocks of 4 bits of r are shared as thermometers, so [less] and [equal] of each
block are local; groups of up to 4 blocks are then folded by ANDs of many inputs, in one round a level:

    less(group) = xor over j of less_j and equal_i for all i > j.

An AND of g bits opens each bit under a mask bit and combines it with the dealer's products of mask bits.

Who sees what: c is uniform because r is, every opened bit because it has a mask bit of its own.
Cost: at k = 40, 7.5 B a party for one threshold and 2.5 B for each further one, 3 rounds. Dealer 20 B + 4.5 B each.

Reference:
    Ohata and Nuida, Communication-efficient (client-aided) secure two-party protocols, 2019 (arXiv 1907.03415).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce as reduce_by

import torch
from torch import Tensor

from ..ring.words import reduce
from .bits import Thermometer, deal_thermometer
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .party import Party
from .secret import Secret


_BLOCK, _GROUP = 4, 4


def _blocks(bits: int) -> list[int]:
    """Lowest bit of every block of the k - 1 low bits."""
    return list(range(0, bits - 1, _BLOCK))


def _monomials(products: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Every product of two mask bits or more that the ANDs need, in a fixed order."""
    return sorted({
        part
        for product in products
        for size in range(2, len(product) + 1)
        for part in itertools.combinations(product, size)
    })  # fmt: skip


def _all_of(bits: Tensor, rows: Iterable[int]) -> Tensor:
    """The AND of some rows of bits."""
    return reduce_by(torch.bitwise_and, (bits[row] for row in rows))


def deal_and(dealing: Dealing, shape: tuple[int, ...], inputs: int, products: tuple[tuple[int, ...], ...]) -> None:
    """Deal the mask bits and their products for `and_round`."""
    masks = dealing.mask((inputs, *shape), 1)
    for monomial in _monomials(products):
        dealing.give(_all_of(masks, monomial), 1)


def and_round(randomness: Tuple, bits: Tensor, products: tuple[tuple[int, ...], ...]) -> SecretProtocol[list[Tensor]]:
    """ANDs of many inputs, in one round.

    Args:
        randomness (`Tuple`): Tuple of the gate, read up to where `deal_and` dealt.
        bits (`torch.Tensor`): XOR shares, uint8 (inputs, ...).
        products: Tuples of input indices, ascending, two or more in each.

    Returns:
        `list[torch.Tensor]`: XOR shares of the products, uint8. One bit an input, one round.
    """
    pad = randomness.mask(tuple(bits.shape), 1)
    shape = tuple(bits.shape[1:])
    shares = {monomial: randomness.word(shape, 1) & 1 for monomial in _monomials(products)}
    shares |= {(index,): mask & 1 for index, mask in enumerate(pad.words)}
    (opened,) = yield [randomness.open(bits, pad)]
    results = []
    for product in products:
        total = torch.zeros_like(bits[0])
        for size in range(len(product) + 1):
            for hidden in itertools.combinations(product, size):
                rest = [index for index in product if index not in hidden]
                term = _all_of(opened, rest) if rest else torch.ones_like(total)
                if hidden:
                    total ^= term & shares[hidden]
                elif randomness.rank == 0:
                    total ^= term
        results.append(total)
    return results


@dataclass(frozen=True)
class _Level:
    """One round of folding: groups of consecutive blocks, lowest first."""

    groups: tuple[int, ...]

    @classmethod
    def of(cls, blocks: int) -> _Level:
        count = -(-blocks // _GROUP)
        return cls(tuple(blocks // count + (index < blocks % count) for index in range(count)))

    def wiring(self) -> tuple[list[tuple[str, int]], tuple[tuple[int, ...], ...], list[list[int]], list[int | None]]:
        """The AND inputs (`less` or `equal` of a block), the products, and each group's products (less, equal)."""
        inputs: list[tuple[str, int]] = []
        products: list[tuple[int, ...]] = []
        less: list[list[int]] = []
        equal: list[int | None] = []
        start = 0
        for group, size in enumerate(self.groups):
            blocks = range(start, start + size)
            used = {("less", block): len(inputs) + at for at, block in enumerate(blocks[:-1])}
            equals = blocks[1:] if group == 0 else blocks
            # A group of one block needs no product: its bits pass as they are.
            if size > 1:
                used |= {("equal", block): len(inputs) + size - 1 + at for at, block in enumerate(equals)}
                inputs += used
            less.append([])
            for block in blocks[:-1]:
                less[-1].append(len(products))
                products.append((used["less", block], *(used["equal", above] for above in blocks if above > block)))
            equal.append(None)
            if group and size > 1:
                equal[-1] = len(products)
                products.append(tuple(used["equal", block] for block in blocks))
            start += size
        return inputs, tuple(products), less, equal


def _levels(blocks: int) -> list[_Level]:
    levels = []
    while blocks > 1:
        levels.append(_Level.of(blocks))
        blocks = len(levels[-1].groups)
    return levels


class Comparison:
    """The part of a comparison after c is open, for gates that open c for other uses too.

    Args:
        randomness (`Tuple`): Tuple of the gate, read up to where `Comparison.deal` dealt.
        shape (`tuple[int, ...]`): Shape of x.
        bits (`int`): k, the ring of c.
    """

    @staticmethod
    def deal(dealing: Dealing, mask: Tensor, bits: int, thresholds: int) -> None:
        """Deal for the mask r, in [0, 2^k), what `run` reads with `thresholds` thresholds."""
        mask = mask.to(torch.int64)
        low = mask & ((1 << (bits - 1)) - 1)
        deal_thermometer(dealing, torch.stack([(low >> at) & 15 for at in _blocks(bits)]), 16)
        dealing.give(mask >> (bits - 1), 1)
        for level in _levels(len(_blocks(bits))):
            inputs, products, _, _ = level.wiring()
            deal_and(dealing, (thresholds, *mask.shape), len(inputs), products)

    def __init__(self, randomness: Tuple, shape: tuple[int, ...], bits: int):
        self._randomness, self._shape, self._bits = randomness, shape, bits
        self._blocks = Thermometer(randomness, (len(_blocks(bits)), *shape), 16)
        self._top = randomness.word(shape, 1) & 1

    def run(self, opened: Tensor, thresholds: tuple[int, ...]) -> SecretProtocol[Tensor]:
        """XOR shares of [x < t] for every threshold t.

        Args:
            opened (`torch.Tensor`): c = x + r mod 2^k, int64.
            thresholds (`tuple[int, ...]`): |x - t| < 2^(k-1).

        Returns:
            `torch.Tensor`: uint8 0 or 1, (len(thresholds), *shape).
        """
        rank0 = self._randomness.rank == 0
        opened = opened.to(torch.int64)
        shifted = torch.stack([reduce(opened - threshold, self._bits) for threshold in thresholds])
        low = shifted & ((1 << (self._bits - 1)) - 1)
        digits = torch.stack([(low >> at) & 15 for at in _blocks(self._bits)])
        # [digit of r <= d] and [... <= d - 1] for every threshold at once.
        upto, below = [], []
        for index in range(len(thresholds)):
            upto.append(self._blocks.at(digits[:, index]))
            positive = (digits[:, index] > 0).to(torch.uint8)
            below.append(self._blocks.at(digits[:, index] - 1) & positive)
        at_most, under = torch.stack(upto, 1), torch.stack(below, 1)
        less, equal = at_most ^ 1 if rank0 else at_most, at_most ^ under
        for level in _levels(len(_blocks(self._bits))):
            inputs, products, less_of, equal_of = level.wiring()
            sources = {"less": less, "equal": equal}
            bits = torch.stack([sources[kind][block] for kind, block in inputs])
            folded = yield from and_round(self._randomness, bits, products)
            new_less, new_equal, start = [], [], 0
            for group, size in enumerate(level.groups):
                total = less[start + size - 1]
                for product in less_of[group]:
                    total = total ^ folded[product]
                new_less.append(total)
                if group and size == 1:
                    new_equal.append(equal[start])
                else:
                    which = equal_of[group]
                    new_equal.append(folded[which] if which is not None else torch.zeros_like(total))
                start += size
            less, equal = torch.stack(new_less), torch.stack(new_equal)
        found = less[0] ^ self._top
        return found ^ ((shifted >> (self._bits - 1)) & 1).to(torch.uint8) if rank0 else found


@dataclass(frozen=True)
class Compare(Gate):
    """XOR shares of [x < t] for public integers t.

    Args:
        shape (`tuple[int, ...]`): Shape of x.
        bits (`int`): k; |x - t| < 2^(k-1) as integers.
        thresholds (`tuple[int, ...]`): At the scale of x.
    """

    shape: tuple[int, ...]
    bits: int
    thresholds: tuple[int, ...]

    def deal(self, dealing: Dealing) -> None:
        Comparison.deal(dealing, dealing.mask(self.shape, self.bits), self.bits, len(self.thresholds))

    def run(self, party: Party, x: Secret) -> SecretProtocol[Tensor]:
        """Open x and compare.

        Args:
            party (`Party`): The party.
            x (`Secret`): Of shape `shape`, in a ring of at least k bits.

        Returns:
            `torch.Tensor`: XOR shares, uint8 (len(thresholds), *shape).
        """
        randomness = party.take(self)
        mask = randomness.mask(self.shape, self.bits)
        comparison = Comparison(randomness, self.shape, self.bits)
        (opened,) = yield [randomness.open(x.narrow(self.bits).words, mask)]
        return (yield from comparison.run(opened, self.thresholds))
