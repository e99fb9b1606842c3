# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Products of a few rows with large matrices on a CPU, compiled by numba where it is installed.

Such a product does little with each word of the large matrix, so it should take as long as reading it. torch's product
of int64 takes 1.5 times as long as this one for eight rows, and more than three times for one. Here a sweep over the
columns adds several rows of the matrix at once, so that the result is read and written less often.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor


MOST_ROWS = 16  # with more rows the words of the matrix are used often enough


def is_for(left: Tensor, right: Tensor) -> bool:
    """Whether `few_rows_matmul` may be the fastest: few rows, a `right` that lies in memory as it is read, numba."""
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return left.shape[-2] <= MOST_ROWS and right.shape[:-2] == batch and right.is_contiguous() and _has_numba()


def few_rows_matmul(left: Tensor, right: Tensor, bits: int) -> Tensor:
    """`ring_matmul` of int64 words for few rows, on a CPU and one thread."""
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    total = torch.zeros(*batch, left.shape[-2], right.shape[-1], dtype=torch.int64)
    lefts, rights = (part.expand(*batch, -1, -1).reshape(-1, *part.shape[-2:]) for part in (left, right))
    _compiled()(lefts.contiguous().numpy(), rights.contiguous().numpy(), total.view(-1, *total.shape[-2:]).numpy())
    return total


@cache
def _has_numba() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:  # not there, or for another version of numpy
        return False
    return True


@cache
def _compiled() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """Compiled once a process, in about a second. Nothing is kept on disk: numba would read it back by pickle."""
    import numba

    @numba.njit(nogil=True)
    def add_product(left, right, total):
        whole = left.shape[2] // 4 * 4
        for matrix in range(len(total)):
            for at in range(0, whole, 4):
                w0, w1, w2, w3 = right[matrix, at], right[matrix, at + 1], right[matrix, at + 2], right[matrix, at + 3]
                for row in range(total.shape[1]):
                    factors, found = left[matrix, row], total[matrix, row]
                    x0, x1, x2, x3 = factors[at], factors[at + 1], factors[at + 2], factors[at + 3]
                    for column in range(len(found)):
                        found[column] += x0 * w0[column] + x1 * w1[column] + x2 * w2[column] + x3 * w3[column]
            for at in range(whole, left.shape[2]):
                for row in range(total.shape[1]):
                    for column in range(total.shape[2]):
                        total[matrix, row, column] += left[matrix, row, at] * right[matrix, at, column]

    return add_product
