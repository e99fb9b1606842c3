# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Folding of the weights of an encoder whose norms stand before each step, by their owner.

A norm's weight and bias are folded into the matrices that read it. The mean of what a step adds is removed at once, by
matrices with centred outputs, as every LayerNorm removes it anyway; an RMSNorm does not, and nothing is centred. On
shares a norm is z / sqrt(sum z^2 / 2^ceil(log2 d)); the ratio of d to that power of two is folded too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from ....number_format import deviation_bits, deviation_ratio
from ...models import EncoderSpec
from ...ring.fixed_point import to_fixed_point
from .ring_widths import RingWidths


def norm_first_names(spec: EncoderSpec) -> list[str]:
    """The name of each layer in folded weights."""
    return [f"first.{layer}" for layer in spec.layer_map]


def fold_norm_first(
    spec: EncoderSpec, weights: Mapping[str, Tensor], rings: RingWidths
) -> Iterator[dict[str, Tensor]]:
    """As `folding.folded_layers`, for `spec.norm_first`."""
    features, bits = spec.hidden_size, rings.bits
    ratio = deviation_ratio(features)
    encoded: dict[str, Tensor] = {}

    def norm(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"].double() * ratio, weights[f"{name}.bias"].double()

    def linear(name: str, before: tuple[Tensor, Tensor] | None = None, centre: bool = False) -> tuple[Tensor, Tensor]:
        matrix, bias = weights[f"{name}.weight"].double().T, weights[f"{name}.bias"].double()
        if before is not None:
            gamma, beta = before
            matrix, bias = gamma[:, None] * matrix, bias + beta @ matrix
        if centre and spec.norm == "layer":
            matrix, bias = (values - values.mean(-1, keepdim=True) for values in (matrix, bias))
        return matrix, bias

    def put(name: str, product: tuple[Tensor, Tensor], scale: int, input_scale: int = bits.hidden) -> None:
        matrix, bias = product
        encoded[name] = to_fixed_point(matrix, scale).contiguous()
        encoded[f"{name}.bias"] = to_fixed_point(bias, input_scale + scale)

    for position, (name, layer) in enumerate(zip(norm_first_names(spec), spec.layer_map, strict=True)):
        yield encoded
        encoded = {}
        own = f"layers.{layer}"
        before = None if spec.bare_first and not position else norm(f"{own}.attention_norm")
        query, bias = linear(f"{own}.query", before)
        shrink = 1 / math.sqrt(spec.head_size)
        put(f"{name}.query", (query * shrink, bias * shrink), bits.query_weights)
        put(f"{name}.key", linear(f"{own}.key", before), bits.key_weights)
        put(f"{name}.value", linear(f"{own}.value", before), bits.value_weights)
        attended = linear(f"{own}.attention_output", centre=True)
        put(f"{name}.attention_output", attended, bits.attention_output_weights, bits.mixed)
        before = norm(f"{own}.output_norm")
        put(f"{name}.intermediate", linear(f"{own}.intermediate", before), bits.intermediate_weights)
        if spec.gated:
            put(f"{name}.gate", linear(f"{own}.gate", before), bits.intermediate_weights)
        put(f"{name}.output", linear(f"{own}.output", centre=True), bits.output_weights, bits.active)
    before = norm("final_norm")
    if spec.head.dense is None:
        put("head.classifier", linear(spec.head.classifier, before), bits.head_weights)
        yield encoded
        return
    put("head.dense", linear(spec.head.dense, before), bits.head_weights)
    matrix, bias = linear(spec.head.classifier)
    if spec.head.normalize:
        matrix = matrix * 2 ** (-deviation_bits(len(matrix)) / 2)
    put("head.classifier", (matrix, bias), bits.head_weights, bits.hidden if spec.head.normalize else bits.head_active)
    yield encoded


def norm_first_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """The public shapes of the tensors of `fold_norm_first`."""
    features, inner = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    for name in norm_first_names(spec):
        for part in ("query", "key", "value", "attention_output"):
            shapes[f"{name}.{part}"] = (features, features)
        for part in ("intermediate", *(["gate"] if spec.gated else [])):
            shapes[f"{name}.{part}"] = (features, inner)
        shapes[f"{name}.output"] = (inner, features)
    head = features if spec.head.dense is None else spec.head.inner_size or features
    if spec.head.dense is not None:
        shapes["head.dense"] = (features, head)
    shapes["head.classifier"] = (head, spec.head.num_outputs)
    return shapes | {f"{name}.bias": shape[-1:] for name, shape in shapes.items()}
