# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Gates that leak, as controls for the tests of views."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_securerouter.mpc.gates.argmax import Reveal
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.gates.gate import Gate
from hf_securerouter.mpc.gates.shuffle import Shuffle, Shuffled
from hf_securerouter.mpc.ring.randomness import Pad
from hf_securerouter.mpc.ring.words import reduce
from tests.support.enumeration import Case, SeenDealing
from tests.support.harness import Message, RecordingParty


def again(pad, bits=None):
    """The same words as a new pad: a reuse that the audit cannot see, and the views must."""
    bits = bits or pad.bits
    return Pad(reduce(pad.words, bits), bits)


@dataclass(frozen=True)
class TwoUnderOneMask(Gate):
    """x and 3 x under one mask, the second perhaps in a smaller ring."""

    shape: tuple[int, ...]
    bits: int
    second_bits: int
    audited: bool = False

    def deal(self, dealing):
        dealing.mask(self.shape, self.bits)

    def run(self, party, x):
        randomness = party.take(self)
        mask = randomness.mask(self.shape, self.bits)
        yield [randomness.open(x.words, mask)]
        yield [randomness.open(3 * x.words, mask if self.audited else again(mask, self.second_bits))]


@dataclass(frozen=True)
class MasksDifference(Gate):
    """x_i, x_j, and then r_i - r_j in the clear."""

    shape: tuple[int, ...]
    bits: ClassVar[int] = 4

    def deal(self, dealing):
        for _ in range(2):
            dealing.mask(self.shape, self.bits)

    def run(self, party, x, y):
        randomness = party.take(self)
        masks = [randomness.mask(self.shape, self.bits) for _ in range(2)]
        yield [randomness.open(secret.words, mask) for secret, mask in zip((x, y), masks, strict=True)]
        difference = masks[0].words - masks[1].words
        yield [randomness.open(difference, Pad(torch.zeros_like(difference), self.bits))]


@dataclass(frozen=True)
class SharedBeta(Gate):
    """Two bits under one mask bit."""

    shape: tuple[int, ...]

    def deal(self, dealing):
        dealing.mask(self.shape, 1)

    def run(self, party, first, second):
        randomness = party.take(self)
        mask = randomness.mask(self.shape, 1)
        yield [randomness.open(first, mask), randomness.open(second, again(mask))]


@dataclass(frozen=True)
class Twice(Gate):
    """x opened twice, under masks of its own: what `TwoUnderOneMask` should have been."""

    shape: tuple[int, ...]
    bits: int

    def deal(self, dealing):
        for _ in range(2):
            dealing.mask(self.shape, self.bits)

    def run(self, party, x):
        randomness = party.take(self)
        for factor in (1, 3):
            yield [randomness.open(factor * x.words, randomness.mask(self.shape, self.bits))]


@dataclass(frozen=True)
class Hidden(Gate):
    """A mask of 3 bits, the dealer's word made of it, and x opened under it."""

    shape: tuple[int, ...]

    def deal(self, dealing):
        mask = dealing.mask(self.shape, 3).to(torch.int64)
        dealing.give(mask * mask, 3)

    def run(self, party, x):
        randomness = party.take(self)
        mask = randomness.mask(self.shape, 3)
        randomness.word(self.shape, 3)
        yield [randomness.open(x.words, mask)]


@dataclass(frozen=True)
class OneMaskShuffle(Shuffle):
    """A shuffle that masks all of its tensors with the columns of one mask."""

    @property
    def name(self):
        return "Shuffle"

    @property
    def most(self):
        return max(columns for columns, _ in self.tensors)

    def deal(self, dealing):
        order = dealing.permutation(self.rows)
        dealing.give(torch.nn.functional.one_hot(order, self.rows), self.width)
        mask = dealing.mask((self.rows, self.most), self.width)
        for columns, width in self.tensors:
            dealing.give(reduce(mask[:, :columns], width)[order], width)

    def start(self, party):
        return OneMaskShuffled(self, party, party.take(self))


class OneMaskShuffled(Shuffled):
    def __init__(self, gate, party, randomness):
        self._gate, self._party, self._randomness = gate, party, randomness
        self._order = randomness.word((gate.rows, gate.rows), gate.width).to(torch.int64)
        mask = randomness.mask((gate.rows, gate.most), gate.width).words
        self._masks = [
            (Pad(reduce(mask[:, :columns], width), width), randomness.word((gate.rows, columns), width))
            for columns, width in gate.tensors
        ]


class UnreducedParty(RecordingParty):
    """Sends words of 64 bits under pads of fewer."""

    def _open(self, openings):
        opened = []
        for opening in openings:
            mine = opening.words.to(torch.int64) + opening.mask.spend()
            (message,) = self.link.exchange([mine.numpy().tobytes()])
            theirs = torch.frombuffer(message, dtype=torch.int64).view(mine.shape)
            opened.append(reduce(mine + theirs, opening.mask.bits))
            self.record.append(Message(opening.gate, 64, mine, theirs, mine + theirs))
        return opened


class UnreducedDealing(SeenDealing):
    """Sends corrections without reducing them to their ring."""

    def give(self, values, bits):
        super().give(values, bits)
        self.seen[-1] = values + self._sources[1].log[-1][2]


def ties(runs):
    """Reveals whether x < y and whether x <= y: not only the order, but also ties."""

    def program(party, x, y):
        bits = yield from Compare((runs,), 4, (0, 1)).run(party, x - y)
        return (yield from Reveal((2, runs)).run(party, bits))

    return program


def gate_of(make):
    return lambda runs: make((runs,)).run


LEAKS = {
    "mask reused": Case(gate_of(lambda shape: TwoUnderOneMask(shape, 4, 4)), (4,), [(0,), (3,)]),
    "mask reused in another ring": Case(gate_of(lambda shape: TwoUnderOneMask(shape, 4, 3)), (4,), [(0,), (3,)]),
    "difference of masks opened": Case(gate_of(MasksDifference), (4, 4), [(0, 0), (3, 1)]),
    "shared beta": Case(gate_of(SharedBeta), (0, 0), [(0, 0), (0, 1)]),
    "unreduced word": Case(gate_of(lambda shape: Twice(shape, 4)), (4,), [(0,), (3,)], party_class=UnreducedParty),
    "tie revealed": Case(ties, (4, 4), [(2, 2), (3, 2)]),
}
