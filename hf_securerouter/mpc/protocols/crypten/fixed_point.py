# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""CrypTen's fixed-point format, 16 fraction bits mod 2^64, without the errors of its encoder and its decoder."""

from __future__ import annotations

import torch
from torch import Tensor


FRACTION_BITS = 16


def to_fixed_point(values: Tensor) -> Tensor:
    """round(2**16 x) as int64 (CrypTen's encoder rounds towards zero)."""
    return torch.round(values.double() * 2**FRACTION_BITS).long()


def from_fixed_point(words: Tensor) -> Tensor:
    """Opened words as float64 (CrypTen's decoder returns some negative numbers 1.0 too low)."""
    return words.double() / 2**FRACTION_BITS
