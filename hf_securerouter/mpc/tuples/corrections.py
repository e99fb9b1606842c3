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
    """P0's corrections in a file, of which one gate's are mapped at a time: a set may be larger than the memory.

    Args:
        file (`IO[bytes]`): Open for reading; it stays open as long as this object lives.
        start (`int`): Offset of the first gate's corrections, in bytes.
        sizes (`Sequence[int]`): Bytes of each gate's corrections, from the plan.

    Raises:
        `SecureRouterError`: The file is shorter than `start` and all `sizes` together.
    """

    def __init__(self, file: IO[bytes], start: int, sizes: Sequence[int]) -> None:
        self._file, self._starts = file, list(accumulate(sizes, initial=start))
        length = os.fstat(file.fileno()).st_size
        if length < self._starts[-1]:
            raise SecureRouterError(f"A set of tuples has {length} bytes where its plan needs {self._starts[-1]}.")

    def __call__(self, index: int) -> Tensor:
        """The corrections of gate `index`, uint8, without a copy; their memory is free once the tensor is gone."""
        start, end = self._starts[index : index + 2]
        if start == end:
            return torch.empty(0, dtype=torch.uint8)
        skip = start % mmap.ALLOCATIONGRANULARITY
        # torch wants writable memory; writes to a private mapping never reach the file. The kernel promises memory
        # for every page of such a mapping, which it would refuse for a whole set.
        mapped = mmap.mmap(self._file.fileno(), end - start + skip, access=mmap.ACCESS_COPY, offset=start - skip)
        return torch.from_numpy(np.frombuffer(mapped, np.uint8, end - start, skip))


class Spool:
    """Collects corrections as they arrive, in a temporary file without a name.

    Args:
        plan (`Plan`): The plan of the set, which states how many bytes will arrive.

    Raises:
        `SecureRouterError`: The disk has no space for all corrections.
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
                    "set TMPDIR to a folder with more space."
                ) from error

    @property
    def left(self) -> int:
        """Bytes that have not arrived yet."""
        return self._left

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            `SecureRouterError`: More bytes have arrived than the plan states.
        """
        if len(data) > self._left:
            raise SecureRouterError(f"The dealer sent more than the {sum(self._sizes)} bytes that the plan has.")
        self._file.write(data)
        self._left -= len(data)

    def finish(self) -> Corrections:
        """The corrections, to be read from now on.

        Raises:
            `SecureRouterError`: Fewer bytes have arrived than the plan states.
        """
        if self._left:
            raise SecureRouterError(f"The dealer's set ended {self._left} bytes before its plan.")
        self._file.flush()
        return Corrections(self._file, 0, self._sizes)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
