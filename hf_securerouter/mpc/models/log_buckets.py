# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which entry of DeBERTa's tables of positions a query and a key read: public, by their distance.

Each direction has `span` entries. Without buckets each distance has one of its own, and all from `span` on share the
last. With buckets this is so for distances up to half of `span`; the other half divides the distances up to `limit`
evenly by their logarithm. Rounding is exact, in integers, so that all machines agree.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def position_entries(length: int, span: int, limit: int | None = None) -> tuple[int, ...]:
    """The entry of each distance of a query from a key.

    Args:
        length (`int`): T, the tokens of an input.
        span (`int`): Entries of each direction.
        limit (`int`, *optional*): With buckets, the number of distances that they divide.

    Returns:
        `tuple[int, ...]`: For each distance from -(T - 1) to T - 1 an entry in [0, 2 `span`), 2 T - 1 in all.
    """
    buckets = list(range(length))
    if limit is not None:
        half, last = span // 2, limit - 1
        step = 0
        for distance in range(half + 1, length):
            # The first step with (distance / half)^(half - 1) <= (last / half)^step.
            while distance ** (half - 1) * half**step > last**step * half ** (half - 1):
                step += 1
            buckets[distance] = half + step
    signed = [-bucket for bucket in buckets[:0:-1]] + buckets
    return tuple(min(max(bucket + span, 0), 2 * span - 1) for bucket in signed)


@lru_cache(maxsize=64)
def entries_of_pairs(length: int, span: int, limit: int | None = None) -> Tensor:
    """The entry of each query and key, int64 (queries, keys); arguments as of `position_entries`."""
    places = torch.arange(length)
    return torch.tensor(position_entries(length, span, limit))[places[:, None] - places + length - 1]
