# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Fixed weights, shared once and used for many queries.

The owner draws a mask B = B0 + B1 for every tensor, from two seeds, and sends D = W - B to both parties. Party i holds
D and the seed of B_i. The dealer holds both seeds but never D, because D and both seeds together reveal the weights. B
is uniform mod 2^64 and is reduced to the ring of each gate. Every sharing draws fresh seeds: two D's under one B would
reveal the difference of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..ring.randomness import AES, Csprng, Pad, new_seed
from ..ring.words import MAX_BITS, seal


@dataclass(frozen=True)
class WeightShare:
    """One party's share of one fixed tensor.

    Args:
        masked (`torch.Tensor`): D = W - B mod 2^64, the same at both parties.
        share (`torch.Tensor`): The party's additive share of W mod 2^64.
    """

    masked: Tensor
    share: Tensor


def weight_mask(seed: bytes, name: str, shape: tuple[int, ...], cipher: str = AES, device: str = "cpu") -> Tensor:
    """One half, B0 or B1, of the mask of the tensor `name`: int64, uniform mod 2^64, on `device`."""
    return Csprng(seed, b"weight/" + name.encode(), cipher, device).ring(shape, MAX_BITS)


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
    first, second = (weight_mask(seed, name, tuple(words.shape), cipher) for seed in seeds)
    return seal(words, Pad(-(first + second), MAX_BITS))[0].contiguous()


def weight_share(
    rank: int, seed: bytes, name: str, masked: Tensor, cipher: str = AES, device: str = "cpu"
) -> WeightShare:
    """Party `rank`'s share of one tensor on `device`, from D and the party's seed."""
    masked = masked.to(device)
    mask = weight_mask(seed, name, tuple(masked.shape), cipher, device)
    return WeightShare(masked, mask + masked if rank == 0 else mask)
