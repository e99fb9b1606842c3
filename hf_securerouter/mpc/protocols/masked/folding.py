# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the owner folds together before sharing an encoder's weights.

LayerNorm's gamma and beta go into the next weights; so does the removal of the mean: W (I - 11'/d) has centred
outputs, and the mean of a residual gamma x + beta is one more column, gamma / d, of the matrix that meets x anyway.
What remains of LayerNorm on shares is z / sqrt(sum z^2 / 2^ceil(log2 d)), the ratio of d to that power of two being
folded too.

A projection of the embeddings goes into the first layer's weights in the same way, with a matrix in place of gamma: it
costs no opening of its own, and the parties open E columns of the embedding output in place of H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ....number_format import deviation_ratio
from ...models import EncoderSpec
from ...ring.fixed_point import to_fixed_point
from .ring_widths import RingWidths


def layer_names(spec: EncoderSpec) -> list[str]:
    """A name for each position in the stack: positions with the same weights before and at them share one."""
    before = ["in", *map(str, spec.layer_map[:-1])]
    return [f"{after}.{layer}" for after, layer in zip(before, spec.layer_map, strict=True)]


def fold_weights(spec: EncoderSpec, weights: Mapping[str, Tensor], rings: RingWidths) -> dict[str, Tensor]:
    """Fold and encode an encoder and its head.

    Args:
        spec (`EncoderSpec`): The encoder.
        weights (`Mapping[str, torch.Tensor]`): Float weights under their canonical names, matrices as (out, in).
        rings (`RingWidths`): The scales.

    Returns:
        `dict[str, torch.Tensor]`: int64 by name; matrices as (in, out), biases at the scale of what they are added to.
    """
    features, bits = spec.hidden_size, rings.bits
    ratio = deviation_ratio(features)
    encoded: dict[str, Tensor] = {}

    def centred(outputs: Tensor) -> Tensor:
        return outputs - outputs.mean(-1, keepdim=True)

    def norm(name: str) -> tuple[Tensor, Tensor]:
        # Rounded before it is folded, so that the residual and the next weights see one and the same gamma.
        gamma = to_fixed_point(weights[f"{name}.weight"].double() * ratio, bits.gamma).double() * 2.0**-bits.gamma
        return gamma, weights[f"{name}.bias"].double()

    def linear(
        name: str, gamma: Tensor | None = None, beta: Tensor | None = None, centre: bool = False
    ) -> tuple[Tensor, Tensor]:
        matrix, bias = weights[f"{name}.weight"].double().T, weights[f"{name}.bias"].double()
        if gamma is not None and beta is not None:
            folded = gamma @ matrix if gamma.dim() == 2 else gamma[:, None] * matrix
            matrix, bias = folded, bias + beta @ matrix
        if centre:
            matrix, bias = centred(matrix), centred(bias)
        return matrix, bias

    def put(name: str, matrix: Tensor, bias: Tensor, scale: int, input_scale: int = bits.hidden) -> None:
        encoded[name] = to_fixed_point(matrix, scale).contiguous()
        encoded[f"{name}.bias"] = to_fixed_point(bias, input_scale + scale)

    def residual(name: str, gamma: Tensor, beta: Tensor) -> None:
        if gamma.dim() == 2:
            put(name, centred(gamma), centred(beta), bits.gamma)
            return
        put(f"{name}.gamma", gamma, beta, bits.gamma)
        put(f"{name}.mean", gamma[:, None] / features, beta.mean()[None], bits.mean_weights)

    for position, (name, layer) in enumerate(zip(layer_names(spec), spec.layer_map, strict=True)):
        if f"{name}.key" in encoded:
            continue
        gamma, beta = torch.ones(features).double(), torch.zeros(features).double()
        if position:
            before = f"layers.{spec.layer_map[position - 1]}.output_norm"
            gamma, beta = norm(before)
        elif spec.embedding_size is not None:
            gamma, beta = linear("embedding_projection")
        own = f"layers.{layer}"
        query, bias = linear(f"{own}.query", gamma, beta)
        shrink = 1 / math.sqrt(spec.head_size)
        put(f"{name}.query", query * shrink, bias * shrink, bits.query_weights)
        put(f"{name}.key", *linear(f"{own}.key", gamma, beta), bits.key_weights)
        put(f"{name}.value", *linear(f"{own}.value", gamma, beta), bits.value_weights)
        residual(f"{name}.input", gamma, beta)
        attended = linear(f"{own}.attention_output", centre=True)
        put(f"{name}.attention_output", *attended, bits.attention_output_weights, bits.mixed)
        gamma, beta = norm(f"{own}.attention_norm")
        put(f"{name}.intermediate", *linear(f"{own}.intermediate", gamma, beta), bits.intermediate_weights)
        residual(f"{name}.middle", gamma, beta)
        put(f"{name}.output", *linear(f"{own}.output", centre=True), bits.output_weights, bits.active)
    gamma, beta = norm(f"layers.{spec.layer_map[-1]}.output_norm")
    put("head.dense", *linear(spec.head.dense, gamma, beta), bits.head_weights)
    put("head.classifier", *linear(spec.head.classifier), bits.head_weights, bits.head_active)
    return encoded


def weight_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """The shapes of what `fold_weights` returns: public, for plans."""
    features, inner = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    for position, name in enumerate(layer_names(spec)):
        width = features if position else spec.input_size
        residual: dict[str, tuple[int, ...]] = {"input.gamma": (width,), "input.mean": (width, 1)}
        if not position and spec.embedding_size is not None:
            residual = {"input": (width, features)}
        for part, shape in {
            "query": (width, features),
            "key": (width, features),
            "value": (width, features),
            **residual,
            "attention_output": (features, features),
            "intermediate": (features, inner),
            "middle.gamma": (features,),
            "middle.mean": (features, 1),
            "output": (inner, features),
        }.items():
            shapes[f"{name}.{part}"] = shape
    head = spec.head.inner_size or features
    shapes["head.dense"] = (features, head)
    shapes["head.classifier"] = (head, spec.head.num_outputs)
    return shapes | {f"{name}.bias": shape[-1:] for name, shape in shapes.items()}
