# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Shares of weights and inputs for the reference protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from ...ring.randomness import Csprng, new_seed
from ..base import Shares, Sharing
from .fixed_point import from_fixed_point, to_fixed_point


# Added to the scores of padding keys; their exp is 0 as long as all scores of a row span less than 188.
MASKED_SCORE = -200.0


class CryptenSharing(Sharing):
    """Additive shares of fixed-point numbers with 16 fraction bits, mod 2**64."""

    def weights(self, weights: Mapping[str, Tensor]) -> Iterator[Shares]:
        for name, values in weights.items():
            # Transposed here, once, so that the parties multiply by contiguous matrices.
            words = to_fixed_point(values.t() if values.dim() == 2 else values).contiguous()
            first, second = _split(words)
            yield {"party0": {name: first}, "party1": {name: second}}

    def inputs(self, embeddings: dict[str, Tensor], attention_mask: Tensor) -> Shares:
        bias = (1 - attention_mask.double()) * MASKED_SCORE
        shares: Shares = {"party0": {}, "party1": {}}
        for name, values in {**embeddings, "attention_bias": bias}.items():
            shares["party0"][name], shares["party1"][name] = _split(to_fixed_point(values))
        return shares

    def logits(self, shares: dict[str, dict[str, Tensor]]) -> Tensor:
        return from_fixed_point(shares["party0"]["logits"] + shares["party1"]["logits"]).float()


def _split(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two additive shares mod 2**64; the first share is uniform, from a seed that is used once."""
    mask = Csprng(new_seed(), b"crypten/share").ring(words.shape, 64)
    return mask, words - mask
