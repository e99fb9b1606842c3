# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Rotary positions: queries and keys are turned by angles that depend on their places only, and so are public.

Components i and i + d / 2 of a head are the coordinates of a point in the plane, which place t turns by an angle of
t / base^(2 i / d).

Reference:
    Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding (2021).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def rotary_tables(length: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the angle of every place and component, float64 (length, head size)."""
    rates = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def turned_by_quarter(x: Tensor) -> Tensor:
    """The points of x, (..., head size), turned by a right angle: the factor of the sine."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
