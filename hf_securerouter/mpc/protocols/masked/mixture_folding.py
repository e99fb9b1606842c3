# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Folding of the weights of a mixture of experts by their owner.

All experts' first matrices stand one above the other, and so do their second ones: `experts.intermediate` of shape
(N (H + 1), F), `experts.output` of shape (N F, H). The last row of each first matrix is its bias, which a column of
ones multiplies, so that a row which chose no expert gets no bias either. The norm before the mixture is folded into
the router and into the first matrices; the second ones have centred outputs, as a dense layer's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ....number_format import FractionBits
from ...models import EncoderSpec
from ...ring.fixed_point import to_fixed_point


def fold_mixture(
    weights: Mapping[str, Tensor], own: str, gamma: Tensor, beta: Tensor, bits: FractionBits
) -> dict[str, Tensor]:
    """The weights of a sparse layer's mixture in fixed point.

    Args:
        weights (`Mapping[str, torch.Tensor]`): Float weights under their canonical names.
        own (`str`): The layer, such as `layers.1`.
        gamma (`torch.Tensor`), beta (`torch.Tensor`): The norm before the mixture, float64 (H,).
        bits (`FractionBits`): Fraction bits.

    Returns:
        `dict[str, torch.Tensor]`: int64 by the end of the name.
    """
    router = weights[f"{own}.router.weight"].double().T
    encoded = {
        "router": to_fixed_point(gamma[:, None] * router, bits.intermediate_weights).contiguous(),
        "router.bias": to_fixed_point(beta @ router, bits.hidden + bits.intermediate_weights),
    }
    weight, biases = (weights[f"{own}.experts.intermediate.{part}"] for part in _PARTS)
    experts, inner, features = weight.shape
    first = torch.empty(experts, features + 1, inner, dtype=torch.int64)
    for rows, matrix, bias in zip(first, weight, biases, strict=True):
        matrix = matrix.double().T
        rows[:-1] = to_fixed_point(gamma[:, None] * matrix, bits.intermediate_weights)
        rows[-1] = to_fixed_point(bias + beta @ matrix, bits.intermediate_weights)
    second = torch.empty(experts, inner, features, dtype=torch.int64)
    for rows, matrix in zip(second, weights[f"{own}.experts.output.weight"], strict=True):
        matrix = matrix.double().T
        rows.copy_(to_fixed_point(matrix - matrix.mean(-1, keepdim=True), bits.output_weights))
    bias = weights[f"{own}.experts.output.bias"].double()
    return encoded | {
        "experts.intermediate": first.flatten(0, 1),
        "experts.output": second.flatten(0, 1),
        "experts.output.bias": to_fixed_point(bias - bias.mean(-1, keepdim=True), bits.active + bits.output_weights),
    }


def mixture_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """The public shapes of the tensors of `fold_mixture`."""
    experts, features, inner = spec.num_experts, spec.hidden_size, spec.intermediate_size
    return {
        "router": (features, experts),
        "router.bias": (experts,),
        "experts.intermediate": (experts * (features + 1), inner),
        "experts.output": (experts * inner, features),
        "experts.output.bias": (experts, features),
    }


_PARTS = ("weight", "bias")
