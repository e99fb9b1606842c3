# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The view of each party over all randomness of a gate in a tiny ring.

A party's *view* is its own words, the dealer's corrections (P0) and the messages that it receives. Many runs go side
by side as the elements of one tensor, each with other randomness, and the views of all runs must be the same multiset
for every secret. They are listed in one of two ways:

- everything: the words of both parties take all values;
- in groups: the words that the viewer holds before the first round are sampled, once a group, and all other words
  take all values. For P1 these are P0's words. For P0 these are P1's masks; each of P1's other words is the pad of one
  correction, so that fixing the correction fixes the pad. Views that agree group by group also agree over all groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_securerouter.mpc.gates.gate import Dealing, Gate, Tuple
from hf_securerouter.mpc.gates.guard import Guard
from hf_securerouter.mpc.gates.party import Party
from hf_securerouter.mpc.gates.secret import Secret
from hf_securerouter.mpc.gates.weight_share import WeightShare
from hf_securerouter.mpc.ring.randomness import Csprng, Pad
from hf_securerouter.mpc.ring.words import reduce, seal, unpack
from hf_securerouter.mpc.tuples.plan import Plan, trace
from tests.support.harness import RecordingParty, drive, links


SEED = bytes(range(32))  # of the sampled words: the same for every secret
MOST_RUNS = 1 << 18


def _word_type(bits: int) -> torch.dtype:
    return torch.uint8 if bits <= 8 else torch.int64


class Words:
    """A source that remembers its words, for the party to read them again."""

    def __init__(self, draw: Callable):
        self.draw, self.log = draw, []
        self.chosen: Tensor | None = None

    def ring(self, shape, bits: int) -> Tensor:
        words = self.draw(tuple(shape), bits) if self.chosen is None else self.chosen
        self.chosen = None
        words = words.to(_word_type(bits))
        self.log.append((tuple(shape), bits, words))
        return words.clone()

    def pad(self, shape, bits: int) -> Pad:
        return Pad(self.ring(shape, bits), bits)


class Again:
    """The words of a log, in order."""

    def __init__(self, log: list):
        self.log = iter(log)

    def ring(self, shape, bits: int) -> Tensor:
        expected, width, words = next(self.log)
        assert (tuple(shape), bits) == (expected, width), "The parties read other words than the dealer drew."
        return words.clone()

    def pad(self, shape, bits: int) -> Pad:
        return Pad(self.ring(shape, bits), bits)


class Runs:
    """Ways to fill the words of many runs.

    Args:
        groups (`int`): Number of groups.
        bits (`int`): Every group has 2^`bits` runs, which enumerate that many bits.
    """

    def __init__(self, groups: int, bits: int):
        self.groups, self.bits, self.count = groups, bits, groups << bits
        self.used = 0
        self._index = torch.arange(self.count) & ((1 << bits) - 1)
        self._generator = Csprng(SEED, b"sampled")

    def columns(self, words: Tensor) -> Tensor:
        """The words of every run, (runs, words)."""
        (axis,) = [axis for axis, size in enumerate(words.shape) if size == self.count]
        return words.movedim(axis, 0).reshape(self.count, -1)

    def _laid_out(self, shape, columns: Tensor) -> Tensor:
        (axis,) = [axis for axis, size in enumerate(shape) if size == self.count]
        rest = [size for at, size in enumerate(shape) if at != axis]
        return columns.reshape(self.count, *rest).movedim(0, axis).contiguous()

    def sampled(self, shape, bits: int) -> Tensor:
        """Words at random, equal in all runs of a group."""
        words = self._generator.ring((self.groups, math.prod(shape) // self.count), bits)
        return self._laid_out(shape, words.repeat_interleave(1 << self.bits, 0))

    def enumerated(self, shape, bits: int) -> Tensor:
        """Words that take every combination of values once."""
        parts = []
        for _ in range(math.prod(shape) // self.count):
            parts.append((self._index >> self.used) & ((1 << bits) - 1))
            self.used += bits
        return self._laid_out(shape, torch.stack(parts, 1))


class Counted:
    """Counts the bits that an enumeration would take."""

    def __init__(self, count: int):
        self.count, self.bits = count, 0

    def __call__(self, shape, bits: int) -> Tensor:
        self.bits += math.prod(shape) // self.count * bits
        return torch.zeros(shape)


class SeenDealing(Dealing):
    """A dealer that records the corrections as P0 sees them; `fix` chooses their values."""

    def __init__(self, sources, weight_mask=None, fix: Callable | None = None):
        super().__init__(sources, weight_mask)
        self.fix, self.seen = fix, []

    def give(self, values: Tensor, bits: int) -> None:
        if self.fix:
            self._sources[1].chosen = reduce(self.fix(values.shape, bits).to(torch.int64) - values, bits)
        # In one piece, as the runs are an axis of every draw.
        values = values.to(_word_type(bits))
        self.corrections.append(seal(values, self._sources[1].pad(values.shape, bits))[1])
        self.seen.append(unpack(self.corrections[-1], values.shape, bits))

    def give_bits(self, values: Tensor) -> None:
        if self.fix:
            self._sources[1].chosen = self.fix(values.shape, 8) ^ values
        super().give_bits(values)
        self.seen.append(unpack(self.corrections[-1], values.shape, 8))


@dataclass
class Case:
    """A program on secrets.

    Args:
        build (callable): From the number of runs and a party to a function of its inputs that is a protocol.
        widths (`tuple[int, ...]`): Ring of every input; 0 for a bit that is XOR-shared.
        secrets (`list[tuple]`): Values of the inputs, then of the weights; their shapes are those of one run.
        weights (`tuple[str, ...]`): Names of the weights.
        scale (`int`): Fraction bits of the inputs.
        guarded (`bool`): Whether the parties have a guard.
        check (callable, *optional*): From the two results and a secret to whether the result is right in every run.
    """

    build: Callable
    widths: tuple[int, ...]
    secrets: list[tuple]
    weights: tuple[str, ...] = ()
    scale: int = 0
    check: Callable | None = None
    guarded: bool = False
    party_class: type = RecordingParty
    dealing_class: type = SeenDealing

    def _program(self, runs: int, shares: list | None) -> Callable:
        def given(party, index: int, width: int) -> Any:
            shape = (runs, *torch.as_tensor(self.secrets[0][index]).shape)
            words = torch.zeros(shape, dtype=torch.int64) if shares is None else shares[index][party.rank]
            if width == 0:
                return party.constant(words.to(torch.uint8))
            return Secret(party.constant(words), width, self.scale, width, party.rank)

        def program(party):
            return self.build(runs)(party, *(given(party, index, width) for index, width in enumerate(self.widths)))

        return program

    def plan(self, runs: int) -> Plan:
        """The plan of that many runs side by side."""
        clear = zip(self.weights, self.secrets[0][len(self.widths) :], strict=True)
        shapes = {name: torch.as_tensor(value).to("meta") for name, value in clear}
        weights = {name: WeightShare(words, words) for name, words in shapes.items()}
        return trace(self._program(runs, None), weights, guarded=self.guarded)

    def _bits(self, rank: int | None) -> int:
        """Bits of the words that are enumerated for the view of `rank`, or of all words."""
        count = Counted(101)
        nothing = Words(lambda shape, bits: torch.zeros(shape))
        for gate in self.plan(101).gates:
            sources = [Words(count) if rank in (None, 1 - side) else nothing for side in (0, 1)]
            # Corrections are fixed by choosing their pads.
            fix = (lambda shape, bits: torch.zeros(shape, dtype=torch.uint8)) if rank == 0 else None
            gate.deal(self._dealing(sources, self._weight_masks, fix))
        return count.bits

    def _dealing(self, *args: Any) -> SeenDealing:
        dealing = self.dealing_class(*args)
        dealing.guarded = self.guarded
        return dealing

    def _weight_masks(self, name: str) -> Tensor:
        return torch.zeros_like(torch.as_tensor(self.secrets[0][len(self.widths) + self.weights.index(name)]))

    def run(self, secret: tuple, rank: int, everything: bool = False, groups: int | None = None) -> Tensor:
        """The sorted views of party `rank`, (groups, runs of a group)."""
        bits = self._bits(None if everything else rank)
        groups = groups or (1 if everything else max(1, min(16, (1 << 13) >> bits)))
        runs = Runs(groups, bits)
        assert runs.count <= MOST_RUNS
        plan = self.plan(runs.count)

        values = [torch.as_tensor(value) for value in secret]
        shares, weights = [], [{}, {}]
        for value, width in zip(values, self.widths, strict=False):
            value = value.expand(runs.count, *value.shape)
            # The bits above the ring depend on the secret, too.
            own = runs.sampled(value.shape, width and 64 or 1).to(torch.int64)
            pair = (own, value ^ own if width == 0 else value - own)
            shares.append(pair if rank == 0 else pair[::-1])
        hidden = {}
        for name, value in zip(self.weights, values[len(self.widths) :], strict=True):
            generator = Csprng(SEED, name.encode())
            masked, own = (generator.ring(value.shape, 64) for _ in range(2))
            hidden[name] = value - masked
            masks = (own, hidden[name] - own) if rank == 0 else (hidden[name] - own, own)
            weights[0][name] = WeightShare(masked, masks[0] + masked)
            weights[1][name] = WeightShare(masked, masks[1])

        draws = [runs.enumerated if everything or side != rank else runs.sampled for side in (0, 1)]
        logs, corrections, seen = ([], []), [], []
        for gate in plan.gates:
            sources = [Words(draw) for draw in draws]
            dealing = self._dealing(sources, hidden.get, runs.sampled if rank == 0 and not everything else None)
            gate.deal(dealing)
            for log, source in zip(logs, sources, strict=True):
                log.append(source.log)
            corrections.append(torch.cat([torch.empty(0, dtype=torch.uint8), *dealing.corrections]))
            seen += dealing.seen
        assert runs.used == bits

        parties = []
        for side, link in enumerate(links()):
            tuples = iter([
                Tuple(gate, side, Again(logs[side][index]), corrections[index] if side == 0 else None)
                for index, gate in enumerate(plan.gates)
            ])  # fmt: skip
            guard = Guard(side, Csprng(SEED, b"guard")) if self.guarded else None
            parties.append(
                self.party_class(side, link, lambda gate, tuples=tuples: next(tuples), weights[side], guard=guard)
            )
        results = drive(self._program(runs.count, shares), tuple(parties))
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if self.check:
            assert self.check(results, secret)

        view = [message.received for message in parties[rank].record]
        if everything:
            view += [words for log in logs[rank] for _, _, words in log] + (seen if rank == 0 else [])
        return self._fingerprints(runs, view)

    @staticmethod
    def _fingerprints(runs: Runs, view: list[Tensor]) -> Tensor:
        """One number for the view of each run (two views share one with probability 2^-64 or so), sorted by group."""
        total = torch.zeros(runs.count, dtype=torch.int64)
        for words in view:
            for column in runs.columns(words.to(torch.int64)).unbind(1):
                total = (total ^ column) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
                total ^= (total >> 29) & 0x7FFFFFFFF
        return total.view(runs.groups, -1).sort(-1).values

    def same(self, rank: int, everything: bool = False) -> bool:
        """Whether party `rank` has the same views for every secret."""
        first, *others = (self.run(secret, rank, everything) for secret in self.secrets)
        return all(torch.equal(first, other) for other in others)


class Enumerated:
    """Words read off a number, lowest bits first."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, shape, bits: int) -> Tensor:
        words = []
        for _ in range(math.prod(shape)):
            words.append(self.number & ((1 << bits) - 1))
            self.number >>= bits
        return torch.tensor(words).view(shape)


def one_run(
    gate: Gate, run: Callable, shares: tuple, rank: int, group: int, number: int, dealing_class: type = SeenDealing
) -> tuple[tuple[int, ...], list[Any]]:
    """One run of a gate whose draws have no axis for many runs, such as a shuffle.

    Args:
        gate (`Gate`): The gate.
        run (callable): From a party and its shares to a protocol.
        shares (`tuple`): The shares of party 0 and of party 1.
        rank (`int`): The viewer.
        group (`int`): Which words the viewer holds before the first round.
        number (`int`): The bits of the other party's masks.
        dealing_class (`type`): The dealer.

    Returns:
        `tuple`: The words that party `rank` receives, and both results.
    """
    sampled = Csprng(SEED, b"%d" % group).ring
    sources = tuple(Words(sampled if side == rank else Enumerated(number)) for side in (0, 1))
    # Corrections are fixed by choosing their pads.
    dealing = dealing_class(sources, None, Csprng(SEED, b"corrections/%d" % group).ring if rank == 0 else None)
    gate.deal(dealing)
    corrections = torch.cat(dealing.corrections)
    protocols = []
    for side in (0, 1):
        tuples = Tuple(gate, side, Again(sources[side].log), corrections if side == 0 else None)
        protocols.append(run(Party(side, None, lambda _, tuples=tuples: tuples), *shares[side]))
    received: list[int] = []
    opened: list[Tensor] | None = None
    while True:
        rounds, results = [], []
        for protocol in protocols:
            try:
                rounds.append(protocol.send(opened))
            except StopIteration as stop:
                results.append(stop.value)
        if results:
            return tuple(received), results
        sent = [[seal(opening.words, opening.mask)[0] for opening in openings] for openings in rounds]
        received += [word for part in sent[1 - rank] for word in part.flatten().tolist()]
        opened = [
            reduce(first + second, opening.mask.bits) for first, second, opening in zip(*sent, rounds[0], strict=True)
        ]
