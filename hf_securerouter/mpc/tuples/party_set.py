# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One party's part of a set of tuples: a label, a seed and, for P0, the corrections of every gate.

A set serves one run. Sent again under the same masks, a query would open the difference of two inputs: so a set opens
once, and one that is kept in a file is burned in a log on the disk before that (`store.py`).
"""

from __future__ import annotations

import mmap
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ...errors import SecureRouterError
from .deal import TupleSet
from .plan import Plan


class TupleReusedError(SecureRouterError):
    """A set of tuples was about to serve a second run."""


@dataclass(frozen=True)
class SetLabel:
    """What both parties compare before they use a set. Public.

    Args:
        id (`str`): 32 hex digits, drawn for this set.
        nonce (`str`): 32 hex digits, drawn when the set is dealt: two deals under one id differ in it.
        plan (`str`): Digest of the plan.
    """

    id: str
    nonce: str
    plan: str

    @classmethod
    def new(cls, plan: Plan) -> SetLabel:
        """A fresh label for a set of `plan`."""
        return cls(secrets.token_hex(16), secrets.token_hex(16), plan.digest)

    def to_dict(self) -> dict[str, str]:
        """The fields by name."""
        return asdict(self)


class Corrections:
    """P0's corrections in a file, mapped and read gate by gate: they may be larger than the memory.

    Args:
        file (`IO[bytes]`): Open for reading.
        start (`int`): Where the first gate's corrections begin.
        sizes (`Sequence[int]`): Bytes of each gate, from the plan.

    Raises:
        `SecureRouterError`: The file is shorter than that.
    """

    def __init__(self, file: IO[bytes], start: int, sizes: Sequence[int]) -> None:
        self._starts = list(accumulate(sizes, initial=start))
        length = os.fstat(file.fileno()).st_size
        if length < self._starts[-1]:
            raise SecureRouterError(f"A set of tuples has {length} bytes where its plan needs {self._starts[-1]}.")
        # A private mapping is writable for torch and leaves the file alone.
        self._map = mmap.mmap(file.fileno(), self._starts[-1], access=mmap.ACCESS_COPY) if length else None

    def __call__(self, index: int) -> Tensor:
        """The corrections of gate `index`, uint8, without a copy."""
        start, end = self._starts[index : index + 2]
        if self._map is None or start == end:
            return torch.empty(0, dtype=torch.uint8)
        # Pages that were read stay in the file only, so that a whole set never counts as this process's memory.
        self._map.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(np.frombuffer(self._map, np.uint8, end - start, start))


class Spool:
    """Takes corrections as they arrive, in a temporary file that has no name.

    Args:
        plan (`Plan`): How many bytes will come.

    Raises:
        OSError: The disk has no room for them.
    """

    def __init__(self, plan: Plan) -> None:
        self._sizes = plan.correction_bytes
        self._file = tempfile.TemporaryFile(prefix="securerouter-tuples-")
        self._left = plan.dealer_bytes
        if self._left:
            try:
                os.posix_fallocate(self._file.fileno(), 0, self._left)
            except OSError as error:
                self._file.close()
                raise SecureRouterError(
                    f"No room for {self._left} bytes of tuples in {tempfile.gettempdir()} ({error.strerror}); "
                    "set TMPDIR to a folder that has."
                ) from error

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return self._left

    def write(self, data: memoryview) -> None:
        """Append bytes; never more than the plan has."""
        if len(data) > self._left:
            raise SecureRouterError(f"The dealer sent more than the {sum(self._sizes)} bytes that the plan has.")
        self._file.write(data)
        self._left -= len(data)

    def finish(self) -> Corrections:
        """The corrections, for reading; all have arrived."""
        if self._left:
            raise SecureRouterError(f"The dealer's set ended {self._left} bytes before its plan.")
        self._file.flush()
        with self._file as file:
            return Corrections(file, 0, self._sizes)

    def close(self) -> None:
        """Give the room back."""
        self._file.close()


class PartySet:
    """One party's part of a set, which can be opened once.

    Args:
        label (`SetLabel`): Its label.
        rank (`int`): Whose it is.
        seed (`bytes`): The party's seed, 32 bytes.
        corrections (`Corrections`, *optional*): Rank 0's.
        received (`int`): Bytes that came from the dealer for it.
    """

    def __init__(
        self, label: SetLabel, rank: int, seed: bytes, corrections: Corrections | None = None, received: int = 0
    ) -> None:
        self.label, self.rank, self.received = label, rank, received
        self._seed: bytes | None = seed
        self._corrections = corrections

    def open(self, plan: Plan, device: str = "cpu") -> TupleSet:
        """Hand the tuples out, once. The seed and the corrections are forgotten here.

        Args:
            plan (`Plan`): As traced by this party.
            device (`str`): Where the party computes.

        Raises:
            `TupleReusedError`: It was opened before.
            `SecureRouterError`: It was dealt for another plan.
        """
        if self._seed is None:
            raise TupleReusedError(f"Set {self.label.id} has served a run; take a new one.")
        if plan.digest != self.label.plan:
            raise SecureRouterError("A set of tuples was dealt for another plan; deal sets for this model and shape.")
        found = TupleSet(plan, self.rank, self._seed, self._corrections, device)
        self._seed = self._corrections = None
        return found
