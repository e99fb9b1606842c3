# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Buckets of relative positions: which entry of a relative attention bias a pair of tokens reads.

Keys up to the query and keys after it have 16 buckets each: one for each distance below 8, then one for each factor of
sqrt(2). The places are public, as they depend on the length only.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


BUCKETS = 32

# Smallest distance of every bucket of one direction but the first.
_STARTS = torch.tensor([*range(1, 9), *(8 * 2 ** (step / 2) for step in range(1, 8))], dtype=torch.float64)


@lru_cache(maxsize=64)
def relative_buckets(length: int) -> Tensor:
    """The bucket of each query and key of an input of `length` tokens, int64 (queries, keys)."""
    places = torch.arange(length)
    offset = places[None, :] - places[:, None]
    return torch.bucketize(offset.abs().double(), _STARTS, right=True) + (offset > 0) * (BUCKETS // 2)
