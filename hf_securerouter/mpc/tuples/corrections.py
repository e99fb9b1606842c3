# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""P0's corrections of one set, in a file."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ...errors import SecureRouterError
from .plan import Plan


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
