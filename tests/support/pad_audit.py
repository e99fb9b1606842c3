# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An audit of masks by their words: a word that masks two messages is found, also in a copy or in another ring.

`Pad` refuses to be spent twice, but a copy of its words is another object. So the words of all pads that are spent are
compared: the low bytes of 8 words in a row, and the low bits of 64, which most rings of few bits have. Each makes a
window of 64 bits, and of a million uniform windows no two are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hf_securerouter.mpc.ring.randomness import Pad


class Audit:
    """The windows of all pads that were spent."""

    def __init__(self) -> None:
        self._bytes: list[np.ndarray] = []
        self._bits: list[np.ndarray] = []
        self.pads = 0

    def add(self, pad: Pad) -> None:
        if pad.words.is_meta:  # a plan is traced
            return
        low = (pad.words.reshape(-1).cpu().numpy() & 255).astype(np.uint8)
        self.pads += 1
        if pad.bits >= 8:
            self._bytes.append(_windows(low, 8))
        self._bits.append(_windows(low & 1, 1))

    @property
    def repeated(self) -> int:
        """How many windows were seen before."""
        return sum(len(seen) - len(np.unique(seen)) for seen in map(np.concatenate, (self._bytes, self._bits)))


def _windows(words: np.ndarray, bits: int) -> np.ndarray:
    """All runs of 64 / `bits` words of `bits` bits, as one number each."""
    found, size = words.astype(np.uint64), bits
    while size < 64:
        step = size // bits
        found = found[:-step] | (found[step:] << np.uint64(size))
        size *= 2
    return found


@contextmanager
def audited() -> Iterator[Audit]:
    """Watch all pads of this process that are spent."""
    audit, spend = Audit(), Pad.spend

    def watched(self):
        words = spend(self)
        audit.add(self)
        return words

    Pad.spend = watched
    try:
        yield audit
    finally:
        Pad.spend = spend
