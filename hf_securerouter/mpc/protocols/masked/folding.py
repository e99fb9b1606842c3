# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Folding of an encoder's weights by their owner, before they are shared.

LayerNorm's gamma and beta are folded into the next weights. The removal of the mean is folded too: W (I - 11'/d) has
centred outputs, and the mean of a residual gamma x + beta is one more column, gamma / d, of the matrix that multiplies
x. On shares, LayerNorm is then z / sqrt(sum z^2 / 2^ceil(log2 d)); the ratio of d to that power of two is folded too.

The keys and queries of positions, which scores of DeBERTa read, have the scales of the keys and queries of tokens.

A projection of the embeddings is folded into the first layer's weights in the same way, with a matrix instead of
gamma: it needs no opening, and the parties open E columns of the embedding output instead of H.

The mean of rows commutes with the last LayerNorm's gamma and beta, which the head folds whatever the pooling. A row
that a head divides by its length is divided as in LayerNorm; the ratio of both is folded into the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ....number_format import deviation_bits, deviation_ratio
from ...models import EncoderSpec
from ...ring.fixed_point import to_fixed_point
from .mixture_folding import fold_mixture, mixture_shapes
from .norm_first_folding import fold_norm_first, norm_first_names, norm_first_shapes
from .ring_widths import RingWidths


def layer_names(spec: EncoderSpec) -> list[str]:
    """The name `before.at` of each position in the stack: the index of the layer before it, or `in`, and its own.

    A layer's folded weights depend on the LayerNorm before it, so both layers are in the name: an expert's
    `layers.0.query.weight` is `experts.0.layers.0.query.weight` in the pool and `experts.0.in.0.query` when it is
    folded. Positions of one name, as in ALBERT, share their weights.
    """
    if spec.norm_first:
        return norm_first_names(spec)
    before = ["in", *map(str, spec.layer_map[:-1])]
    return [f"{after}.{layer}" for after, layer in zip(before, spec.layer_map, strict=True)]


def fold_weights(spec: EncoderSpec, weights: Mapping[str, Tensor], rings: RingWidths) -> dict[str, Tensor]:
    """What `folded_layers` yields, in one dict."""
    return {name: words for layer in folded_layers(spec, weights, rings) for name, words in layer.items()}


def folded_layers(spec: EncoderSpec, weights: Mapping[str, Tensor], rings: RingWidths) -> Iterator[dict[str, Tensor]]:
    """Fold the weights of an encoder and its head, and convert them to fixed point, a layer at a time.

    Args:
        spec (`EncoderSpec`): The encoder.
        weights (`Mapping[str, torch.Tensor]`): Float weights under their canonical names, matrices as (out, in).
        rings (`RingWidths`): The fraction bits.

    Yields:
        `dict[str, torch.Tensor]`: int64 by name, see `layer_names`; matrices as (in, out), biases at the scale of the
        products to which they are added.
    """
    if spec.norm_first:
        yield from fold_norm_first(spec, weights, rings)
        return
    features, bits = spec.hidden_size, rings.bits
    ratio = deviation_ratio(features)
    encoded: dict[str, Tensor] = {}

    def centred(outputs: Tensor) -> Tensor:
        return outputs - outputs.mean(-1, keepdim=True)

    def norm(name: str) -> tuple[Tensor, Tensor]:
        # Gamma is rounded before it is folded, so that the residual and the next weights use the same gamma.
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
        yield encoded
        encoded = {}
        if name in layer_names(spec)[:position]:
            continue
        gamma, beta = torch.ones(features).double(), torch.zeros(features).double()
        if position:
            before = f"layers.{spec.layer_map[position - 1]}.output_norm"
            gamma, beta = norm(before)
        elif spec.embedding_size is not None:
            gamma, beta = linear("embedding_projection")
        own = f"layers.{layer}"
        query, bias = linear(f"{own}.query", gamma, beta)
        put(f"{name}.query", query * spec.score_scale, bias * spec.score_scale, bits.query_weights)
        put(f"{name}.key", *linear(f"{own}.key", gamma, beta), bits.key_weights)
        put(f"{name}.value", *linear(f"{own}.value", gamma, beta), bits.value_weights)
        residual(f"{name}.input", gamma, beta)
        for term, scale, factor in (("keys", bits.key, 1.0), ("queries", bits.query, spec.score_scale)):
            if term in _tables(spec):
                table = weights[f"{own}.position_{term}.weight"].double().T * factor
                by_heads = table.view(spec.num_heads, spec.head_size, -1)
                encoded[f"{name}.position_{term}"] = to_fixed_point(by_heads, scale).contiguous()
        attended = linear(f"{own}.attention_output", centre=True)
        put(f"{name}.attention_output", *attended, bits.attention_output_weights, bits.mixed)
        gamma, beta = norm(f"{own}.attention_norm")
        residual(f"{name}.middle", gamma, beta)
        if position in spec.sparse_layers:
            mixture = fold_mixture(weights, own, gamma, beta, bits)
            encoded |= {f"{name}.{part}": words for part, words in mixture.items()}
            continue
        put(f"{name}.intermediate", *linear(f"{own}.intermediate", gamma, beta), bits.intermediate_weights)
        if spec.gated:
            put(f"{name}.gate", *linear(f"{own}.gate", gamma, beta), bits.intermediate_weights)
        put(f"{name}.output", *linear(f"{own}.output", centre=True), bits.output_weights, bits.active)
    if spec.relative_buckets is not None:
        # At the scale of the scores, to which each party adds entries of its share.
        table = weights["relative_attention_bias.weight"].double().T
        encoded["relative_attention_bias"] = to_fixed_point(table, bits.query + bits.key).contiguous()
    gamma, beta = norm(f"layers.{spec.layer_map[-1]}.output_norm")
    if spec.head.dense is None:
        put("head.classifier", *linear(spec.head.classifier, gamma, beta), bits.head_weights)
        yield encoded
        return
    put("head.dense", *linear(spec.head.dense, gamma, beta), bits.head_weights)
    matrix, bias = linear(spec.head.classifier)
    if spec.head.normalize:
        # On shares a row is divided by the root of its sum of squares / 2^deviation_bits.
        matrix = matrix * 2 ** (-deviation_bits(len(matrix)) / 2)
    input_scale = bits.hidden if spec.head.normalize else bits.head_active
    put("head.classifier", matrix, bias, bits.head_weights, input_scale)
    yield encoded


def weight_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """The public shapes of the tensors of `fold_weights`, for plans."""
    if spec.norm_first:
        return norm_first_shapes(spec)
    features, inner = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    sparse: dict[str, tuple[int, ...]] = {}
    for position, name in enumerate(layer_names(spec)):
        width = features if position else spec.input_size
        residual: dict[str, tuple[int, ...]] = {"input.gamma": (width,), "input.mean": (width, 1)}
        if not position and spec.embedding_size is not None:
            residual = {"input": (width, features)}
        feed_forward = {
            "intermediate": (features, inner),
            **({"gate": (features, inner)} if spec.gated else {}),
            "output": (inner, features),
        }
        if position in spec.sparse_layers:
            feed_forward = {}
            sparse |= {f"{name}.{part}": shape for part, shape in mixture_shapes(spec).items()}
        for part, shape in {
            "query": (width, features),
            "key": (width, features),
            "value": (width, features),
            **residual,
            "attention_output": (features, features),
            "middle.gamma": (features,),
            "middle.mean": (features, 1),
            **feed_forward,
        }.items():
            shapes[f"{name}.{part}"] = shape
    head = features if spec.head.dense is None else spec.head.inner_size or features
    if spec.head.dense is not None:
        shapes["head.dense"] = (features, head)
    shapes["head.classifier"] = (head, spec.head.num_outputs)
    shapes |= {f"{name}.bias": shape[-1:] for name, shape in shapes.items()}
    shapes |= sparse
    if spec.relative_buckets is not None:
        shapes["relative_attention_bias"] = (spec.num_heads, spec.relative_buckets)
    for name in dict.fromkeys(layer_names(spec)):
        for term in _tables(spec):
            shapes[f"{name}.position_{term}"] = (spec.num_heads, spec.head_size, 2 * spec.position_span)
    return shapes


def _tables(spec: EncoderSpec) -> list[str]:
    """Which tables of positions each layer has."""
    names = {"c2p": "keys", "p2c": "queries"}
    return [names[term] for term in spec.position_terms]
