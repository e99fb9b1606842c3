# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whether some value of a run left its bound: one bit, which only the client learns.

A lifted value (`gates/lift.py`) is opened in a ring of four times its range. With a thermometer of the mask's high
bits (`gates/bits.py`) each party reads off the opening its XOR share of [the value is beyond its bound]: it is
certainly 0 below 7/8 of the bound, certainly 1 from the bound to three times the bound, and either between. Farther
out the ring wraps, and about half of all values are noticed. What no gate lifts is opened coarsely
(`gates/in_range.py`).

The parties fold all these bits into one word: the XOR of words of 64 bits, one for each bit that is set, which both
draw from a seed that only they know. Each holds an XOR share of it. The client, who gets both shares, reads 0 if no
bit is set; otherwise the word is uniform, 0 with probability 2^-64, because the client does not know the words.

Who sees what: the parties see no new opening of a lifted value; the client sees whether any bit is set, and neither
which nor how many. A client together with a party, who knows the words, can find out which.
Cost: none online for a lifted value; dealer 4 B an element.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from ..ring.randomness import WordSource
from .gate import SecretProtocol, together


T = TypeVar("T")

WORD_BITS = 64


class Guard:
    """One party's fold of the bits of a run.

    Args:
        rank (`int`): 0 or 1.
        words (`WordSource`): Draws the words that are folded, the same at both parties and unknown to all others.

    Attributes:
        share (`int`): The party's XOR share of the word, a signed integer of 64 bits.
    """

    def __init__(self, rank: int, words: WordSource) -> None:
        self.rank, self._words = rank, words
        self.share = 0
        self._later: list[SecretProtocol[Any]] = []

    def note(self, beyond: Tensor) -> None:
        """Fold in XOR shares of bits, uint8: 1 where a value is beyond its bound. Local."""
        words = self._words.ring(beyond.shape, WORD_BITS) & -beyond.to(torch.int64)
        self.share ^= _xor_of_all(words.reshape(-1))

    def note_inside(self, inside: Tensor) -> None:
        """The same for bits that are 1 where a value is within its bound."""
        self.note(inside ^ 1 if self.rank == 0 else inside)

    def later(self, protocol: SecretProtocol[Any]) -> None:
        """Run a protocol at the end of the program, beside all others that wait, so that it adds no round here."""
        self._later.append(protocol)

    def finished(self, program: SecretProtocol[T]) -> SecretProtocol[T]:
        """A program, followed by the protocols that it left for later."""
        result = yield from program
        waiting, self._later = self._later, []
        yield from together(*waiting)
        return result


class PlannedGuard(Guard):
    """The guard of a plan, whose bits have no data."""

    def __init__(self) -> None:
        super().__init__(0, None)  # type: ignore[arg-type]

    def note(self, beyond: Tensor) -> None:
        """Fold nothing."""


def _xor_of_all(words: Tensor) -> int:
    """The XOR of int64 words, on any device."""
    while len(words) > 1:
        half = len(words) // 2
        rest = words[2 * half :]
        words = torch.cat([words[:half] ^ words[half : 2 * half], rest])
    return int(words[0]) if len(words) else 0
