# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a gate is, and how gates run side by side.

A gate is a frozen dataclass: its fields, all public, say which function on which shapes in which rings. The dealer
calls `deal`, which makes the gate's tuple of correlated randomness. The parties run a *protocol*: a generator that
takes its tuple, yields a list of openings (one round), is sent the opened values, and returns shares of the result.

    c = x + r          opened: r is a mask that only the dealer knows, uniform in the ring of the opening
    free word          each party expands a seed of its own; the dealer knows both seeds and so the sum
    given word         P1 expands its seed, P0 receives the dealer's correction: the dealer chooses the sum

Nothing else is ever sent. A party's view of a gate is its seeds, corrections that P1's seed makes uniform, and opened
values that r makes uniform: it can be simulated without the secret. `ReLU` in `gates/relu.py` is the example to follow
when a gate is added.
"""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..ring.device import kept_on
from ..ring.randomness import Pad, WordSource
from ..ring.words import packed_size, reduce, seal, seal_in_pieces, unpack
from .weight_share import WeightShare


T = TypeVar("T")


@dataclass(frozen=True)
class Opening:
    """A share about to be opened under a mask.

    Args:
        words (`torch.Tensor`): The party's share of the value.
        mask (`Pad`): The party's share of the mask; its width is the ring of the opening.
        gate (`str`): Name of the gate that opens, for the ledger.
    """

    words: Tensor
    mask: Pad
    gate: str


SecretProtocol = Generator[list[Opening], list[Tensor], T]
"""A run of a gate, or of gates in sequence, at one party: yields rounds of openings, returns `T`."""


def together(*protocols: SecretProtocol[Any]) -> SecretProtocol[list[Any]]:
    """Run protocols side by side: the openings of a round travel in one message.

    Args:
        protocols: They must not depend on each other's results.

    Returns:
        The list of their results, in order, after as many rounds as the longest of them takes.
    """
    results: list[Any] = [None] * len(protocols)
    waiting: dict[int, list[Opening]] = {}

    def resume(index: int, opened: list[Tensor] | None) -> None:
        try:
            waiting[index] = protocols[index].send(opened)  # type: ignore[arg-type]
        except StopIteration as stop:
            waiting.pop(index, None)
            results[index] = stop.value

    for index in range(len(protocols)):
        resume(index, None)
    while waiting:
        batch = dict(waiting)
        opened = yield [opening for openings in batch.values() for opening in openings]
        start = 0
        for index, openings in batch.items():
            resume(index, opened[start : start + len(openings)])
            start += len(openings)
    return results


Draw = tuple[str, tuple[int, ...], int]
"""One draw from a tuple: the kind (`mask`, `word`, `bits` or `free`), the shape, and the width in bits."""


def drawn_bytes(draws: Iterable[Draw]) -> int:
    """Bytes of memory that the drawn words take."""
    return sum(math.prod(shape) * (1 if bits <= 8 else 8) for _, shape, bits in draws)


class Tuple:
    """One party's share of the randomness of one gate, read in the order in which the gate's `deal` made it.

    Args:
        gate (`Gate`): The gate that the tuple serves.
        rank (`int`): 0 or 1.
        source (`WordSource`): The words that the party expands from its seed.
        corrections (`torch.Tensor`, *optional*): At P0 the packed corrections, uint8.

    Attributes:
        guard (`Guard`, *optional*): The guard of the run, if it has one; see `gates/guard.py`.

    All draws raise `SecureRouterError` if the corrections end too early, or if the gate departs from its plan.
    """

    def __init__(self, gate: Gate, rank: int, source: WordSource, corrections: Tensor | None = None):
        self.gate, self.rank = gate, rank
        self.prepared: Any = None
        self.guard: Any = None
        self._source, self._corrections, self._read = source, corrections, 0
        self._ahead: deque[tuple[Draw, Any]] = deque()

    def read_ahead(self, draws: Iterable[Draw]) -> None:
        """Make the gate's first draws now; the gate must ask for them in this order."""
        self._ahead.extend((draw, self._make(*draw)) for draw in draws)

    def mask(self, shape: Sequence[int], bits: int) -> Pad:
        """This party's share of a mask that is uniform mod 2^`bits`. The dealer sends nothing for it."""
        return self._draw("mask", shape, bits)

    def word(self, shape: Sequence[int], bits: int) -> Tensor:
        """This party's share mod 2^`bits` of a word that the dealer chose."""
        return self._draw("word", shape, bits)

    def bits(self, shape: Sequence[int]) -> Tensor:
        """This party's XOR share of strings of 8 bits that the dealer chose, uint8."""
        return self._draw("bits", shape, 8)

    def lift_mask(self, shape: Sequence[int], bits: int, width: int) -> tuple[Pad, Tensor]:
        """This party's share of a mask uniform mod 2^`bits`, and its share of the same mask mod 2^`width`."""
        free = self._draw("free", shape, width)
        return Pad(reduce(free, bits), bits), free - (self.word(shape, width - bits).to(torch.int64) << bits)

    def open(self, words: Tensor, mask: Pad) -> Opening:
        """The opening of `words` under `mask`, counted under this gate's name."""
        return Opening(words, mask, self.gate.name)

    def _draw(self, kind: str, shape: Sequence[int], bits: int) -> Any:
        """The next draw: made ahead, or made now."""
        draw = kind, tuple(shape), bits
        if not self._ahead:
            return self._make(*draw)
        planned, found = self._ahead.popleft()
        if planned != draw:
            raise SecureRouterError(f"`{self.gate.name}` asks for other words than its plan has.")
        return found

    def _make(self, kind: str, shape: tuple[int, ...], bits: int) -> Any:
        if kind == "mask":
            return self._source.pad(shape, bits)
        if kind == "free" or (kind == "bits" and self.rank == 1):
            return self._source.ring(shape, bits)
        if self.rank == 1:
            return self._source.ring(shape, bits).neg_()
        size = packed_size(math.prod(shape), bits)
        if self._corrections is None or self._read + size > self._corrections.numel():
            raise SecureRouterError(f"The dealer's corrections for `{self.gate.name}` end too early.")
        packed = self._corrections[self._read : self._read + size]
        self._read += size
        if self._read == self._corrections.numel():
            self._corrections = None  # all are read, and their memory may go
        return unpack(packed, shape, bits)


class Dealing:
    """The dealer's side of one tuple.

    Args:
        sources (`tuple[WordSource, WordSource]`): The words that P0 and P1 will expand from their seeds.
        weight_mask (callable, *optional*): From the name of a fixed weight to its mask B, int64 mod 2^64.
        device (`str`): Device of the sources' words.
        guarded (`bool`): Whether the run has a guard, which reads more words.
    """

    def __init__(
        self,
        sources: tuple[WordSource, WordSource],
        weight_mask: Any = None,
        device: str = "cpu",
        guarded: bool = False,
    ):
        self._sources, self.weight_mask, self.device = sources, weight_mask, device
        self.guarded = guarded
        self.corrections: list[Tensor] = []

    def constant(self, values: Tensor) -> Tensor:
        """A public tensor on the device of the words."""
        return kept_on(self.device, values)

    def mask(self, shape: Sequence[int], bits: int) -> Tensor:
        """A mask uniform mod 2^`bits`: the sum of two words that the parties expand themselves.

        Returns:
            `torch.Tensor`: In [0, 2^bits) below 64 bits; uint8 up to 8 bits, int64 above.
        """
        first, second = (source.ring(shape, bits) for source in self._sources)
        return reduce(first + second, bits)

    def permutation(self, count: int) -> Tensor:
        """A uniform permutation of `count` rows that only the dealer knows, int64 (count,)."""
        order = list(range(count))
        secrets.SystemRandom().shuffle(order)  # Fisher-Yates, with unbiased indices from the system's generator
        return torch.tensor(order)

    def give(self, values: Tensor, bits: int) -> None:
        """Share `values` mod 2^`bits`: P1 expands its share, P0 gets the correction, `bits` bits a word."""
        if bits <= 8:
            values = values.to(torch.uint8)
        self.corrections.append(seal_in_pieces(values, self._sources[1], bits))

    def give_bits(self, values: Tensor) -> None:
        """XOR-share strings of 8 bits, uint8: one byte a string for P0, nothing for P1."""
        pad = Pad(self._sources[1].ring(values.shape, 8), 8, xor=True)
        self.corrections.append(seal(values, pad)[1].reshape(-1))

    def lift_mask(self, shape: Sequence[int], bits: int, width: int) -> Tensor:
        """A mask uniform mod 2^`bits` that the parties hold mod 2^`width` too.

        The parties expand words uniform mod 2^`width`, for which the dealer sends nothing; a correction of `width` -
        `bits` bits a word cancels the bits of their sum above the mask.
        """
        first, second = (source.ring(shape, width) for source in self._sources)
        total = reduce(first + second, width)
        mask = reduce(total, bits)
        self.give(((total - mask) >> bits) & ((1 << (width - bits)) - 1), width - bits)
        return mask


class Gate(ABC):
    """Base class of all gates: a frozen dataclass of public values."""

    @property
    def name(self) -> str:
        """The gate's name in plans and ledgers."""
        return type(self).__name__

    @abstractmethod
    def deal(self, dealing: Dealing) -> None:
        """Make the gate's tuple: draw masks and give words, in the order in which the parties read them."""

    def prepare(self, randomness: Tuple, weights: Mapping[str, WeightShare]) -> Any:
        """Compute from the tuple and the weight shares what a party can before the input arrives.

        Returns:
            The value that `run` reads from `Tuple.prepared`; None if there is nothing to compute.
        """
        return None
