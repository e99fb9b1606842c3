# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Fixed-point encoding: a real number is the ring element value * 2^scale, rounded to the nearest integer."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SecureRouterValueError
from .words import signed


def to_fixed_point(values: Tensor, scale: int) -> Tensor:
    """Round `values` * 2^`scale` to integers.

    Args:
        values (`torch.Tensor`): Real numbers of any floating dtype.
        scale (`int`): Fraction bits.

    Returns:
        `torch.Tensor`: int64 on the CPU, same shape; the rounding error is at most 2^-(`scale` + 1).

    Raises:
        `SecureRouterValueError`: A value is not finite, or its magnitude is 2^(62 - `scale`) or more.
    """
    scaled = values.detach().to("cpu", torch.float64) * 2.0**scale
    if not bool((scaled.abs() < 2.0**62).all()):
        raise SecureRouterValueError(f"`values` hold a number that is not finite or exceeds 2^{62 - scale}.")
    return scaled.round().to(torch.int64)


def from_fixed_point(words: Tensor, bits: int, scale: int) -> Tensor:
    """Decode words of Z_2^`bits`, read as signed integers with `scale` fraction bits: float64, same shape."""
    return signed(words, bits).to(torch.float64) * 2.0**-scale
