# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder and its head in float64, computed from the spec and the canonical weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from hf_securerouter.mpc.models import EncoderSpec


ACTIVATIONS = {
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda x: x,
}


def reference(weights: Mapping[str, Tensor], spec: EncoderSpec, x: Tensor, live: Tensor) -> Tensor:
    """Logits (B, C) of embedding outputs (B, T, E) under a mask (B, T) of ones and zeros."""
    weights = {name: values.double() for name, values in weights.items()}

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        return torch.nn.functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], spec.layer_norm_eps
        )

    def heads(x):
        return x.reshape(*x.shape[:2], spec.num_heads, spec.head_size).transpose(1, 2)

    def of_positions(query, key, name):
        """Pair by pair, with the buckets of transformers."""
        limit = -1 if spec.position_limit is None else spec.position_limit
        span = spec.position_span
        buckets = build_relative_position(query, key, span if limit > 0 else -1, limit)[0]
        entries = (buckets + span).clamp(0, 2 * span - 1)
        total = torch.zeros(*query.shape[:3], query.shape[2]).double()
        for term, part, content in (("c2p", "position_keys", query), ("p2c", "position_queries", key)):
            if term in spec.position_terms:
                table = weights[f"{name}.{part}.weight"].view(2 * span, spec.num_heads, -1)[entries]
                total += torch.einsum(f"bh{'q' if term == 'c2p' else 'k'}d,qkhd->bhqk", content, table)
        return total

    x, bias = x.double(), (1 - live.double())[:, None, None] * -200
    assert x.shape[-1] == spec.input_size and len(spec.layer_map) == spec.num_layers
    if spec.relative_buckets is not None:
        places = torch.arange(x.shape[1])
        buckets = MPNetEncoder.relative_position_bucket(places - places[:, None], spec.relative_buckets)
        bias = bias + weights["relative_attention_bias.weight"][buckets].permute(2, 0, 1)
    if spec.embedding_size is not None:
        x = linear(x, "embedding_projection")
    for index in spec.layer_map:
        name = f"layers.{index}"
        query, key, value = (heads(linear(x, f"{name}.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3)
        if spec.position_terms:
            scores = scores + of_positions(query, key, name)
        scores = scores / (spec.head_size * (1 + len(spec.position_terms))) ** 0.5 + bias
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
        x = norm(x + linear(context, f"{name}.attention_output"), f"{name}.attention_norm")
        inner = ACTIVATIONS[spec.hidden_act](linear(x, f"{name}.intermediate"))
        x = norm(x + linear(inner, f"{name}.output"), f"{name}.output_norm")
    row = x[:, 0]
    if spec.pooling == "mean":
        row = torch.stack([own[mask.bool()].mean(0) for own, mask in zip(x, live, strict=True)])
    if spec.head.dense is not None:
        row = ACTIVATIONS[spec.head.activation](linear(row, spec.head.dense))
    if spec.head.normalize:
        row = row / row.norm(dim=-1, keepdim=True)
    return linear(row, spec.head.classifier)
