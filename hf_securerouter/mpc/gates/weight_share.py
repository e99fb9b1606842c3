# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Fixed weights, shared once and used for many queries.

The owner draws a mask B = B0 + B1 for every tensor, from two seeds, and sends D = W - B to both parties. Party i holds
D and the seed of B_i. The dealer holds both seeds but never D, because D and both seeds together reveal the weights. B
is uniform mod 2^64 and is reduced to the ring of each gate. Every sharing draws fresh seeds: two D's under one B would
reveal the difference of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ring.randomness import AES, Csprng, Pad, new_seed
from ..ring.words import MAX_BITS, seal


_PIECE = 1 << 17  # words that are masked at once: they stay in the CPU's cache


@dataclass(frozen=True)
class WeightShare:
    """One party's share of one fixed tensor.

    Args:
        masked (`torch.Tensor`): D = W - B mod 2^64, the same at both parties.
        share (`torch.Tensor`): The party's additive share of W mod 2^64.
    """

    masked: Tensor
    share: Tensor


def _source(seed: bytes, name: str, cipher: str, device: str) -> Csprng:
    return Csprng(seed, b"weight/" + name.encode(), cipher, device)


def weight_mask(seed: bytes, name: str, shape: tuple[int, ...], cipher: str = AES, device: str = "cpu") -> Tensor:
    """One half, B0 or B1, of the mask of the tensor `name`: int64, uniform mod 2^64, on `device`."""
    return _source(seed, name, cipher, device).ring(shape, MAX_BITS)


def whole_mask(
    seeds: Sequence[bytes], name: str, shape: tuple[int, ...], cipher: str = AES, device: str = "cpu"
) -> Tensor:
    """B, the sum of both halves, which are never both whole in memory."""
    first, second = seeds
    mask = weight_mask(first, name, shape, cipher, device)
    other = _source(second, name, cipher, device)
    for piece in mask.view(-1).split(_PIECE):
        piece.add_(other.ring(piece.shape, MAX_BITS))
    return mask


def mask_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[bytes, bytes]]:
    """Share encoded weights.

    Args:
        weights (`Mapping[str, torch.Tensor]`): int64 tensors (value * 2^scale) by name.

    Returns:
        `tuple[dict[str, torch.Tensor], tuple[bytes, bytes]]`: D of every tensor, for both parties; the seeds of P0 and
        of P1, each known to its party and the dealer only.
    """
    seeds = (new_seed(), new_seed())
    return {name: mask_weight(seeds, name, words) for name, words in weights.items()}, seeds


def mask_weight(seeds: tuple[bytes, bytes], name: str, words: Tensor, cipher: str = AES) -> Tensor:
    """D = W - B of one tensor, int64; the seeds must be fresh for each sharing."""
    first, second = (_source(seed, name, cipher, "cpu") for seed in seeds)
    masked = torch.empty(words.shape, dtype=torch.int64)
    for piece, covered in zip(words.reshape(-1).split(_PIECE), masked.view(-1).split(_PIECE), strict=True):
        pad = Pad(-(first.ring(piece.shape, MAX_BITS) + second.ring(piece.shape, MAX_BITS)), MAX_BITS)
        covered.copy_(seal(piece, pad)[0])
    return masked


def weight_share(
    rank: int, seed: bytes, name: str, masked: Tensor, cipher: str = AES, device: str = "cpu"
) -> WeightShare:
    """Party `rank`'s share of one tensor on `device`, from D and the party's seed."""
    masked = masked.to(device)
    mask = weight_mask(seed, name, tuple(masked.shape), cipher, device)
    return WeightShare(masked, mask.add_(masked) if rank == 0 else mask)
