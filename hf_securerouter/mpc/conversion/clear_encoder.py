# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder in clear text, computed as shares compute it, which records the range of every bounded value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...mpc_friendly import UNNORMALIZED, Quadratic, attention_weights
from ..models import EncoderSpec
from ..models.relative_positions import relative_buckets


# Least and largest value by position in the stack, None for the embeddings and the head, and by kind.
Seen = dict[tuple[int | None, str], tuple[float, float]]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "quadratic": Quadratic(),
}


class ClearEncoder:
    """An encoder as shares compute it, from the same weights; records the range of every bounded value.

    Args:
        spec (`EncoderSpec`): Its public shape.
        weights (`Mapping[str, torch.Tensor]`): By canonical name, matrices as (out, in).
        dtype (`torch.dtype`): Type of all values; float32 is enough for ranges.

    Attributes:
        seen (`Seen`): What was recorded; kinds are named as in `Bounds`, with `span` (of a row's scores) and
            `variance` (of a LayerNorm's input) and `attended_variance` (of a layer's first LayerNorm).
    """

    def __init__(self, spec: EncoderSpec, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.spec = spec
        self.dtype = dtype
        self._weights = {name: values.to(dtype) for name, values in weights.items()}
        self._position: int | None = None
        self.seen: Seen = {}

    def __call__(self, x: Tensor, is_token: Tensor) -> Tensor:
        """Classify.

        Args:
            x (`torch.Tensor`): Embedding output, (B, T, H) float; padding rows are copies of a token's row.
            is_token (`torch.Tensor`): Attention mask, (B, T).

        Returns:
            `torch.Tensor`: Logits, (B, C).
        """
        self._position = None
        x = self._note("embedding", x.to(self.dtype))
        if "embedding_projection.weight" in self._weights:
            x = self._linear(x, "embedding_projection")
        for position, layer in enumerate(self.spec.layer_map):
            self._position = position
            x = self._layer(x, is_token[:, None, None, :].to(self.dtype), f"layers.{layer}")
        self._position = None
        head = self.spec.head
        row = self._note("head", self._linear(x[:, 0], head.dense))
        return self._note("logits", self._linear(_ACTIVATIONS[head.activation](row), head.classifier))

    def _note(self, kind: str, values: Tensor) -> Tensor:
        low, high = self.seen.get((self._position, kind), (math.inf, -math.inf))
        least, largest = torch.aminmax(values)
        # numpy's minimum and maximum keep a NaN, which Python's would lose.
        self.seen[self._position, kind] = float(np.minimum(low, float(least))), float(np.maximum(high, float(largest)))
        return values

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, z: Tensor, name: str, attended: bool = False) -> Tensor:
        centred = self._note("residual", z - z.mean(-1, keepdim=True))
        variance = self._note("variance", centred.square().mean(-1, keepdim=True))
        if attended:
            self._note("attended_variance", variance)
        normal = centred / (variance + self.spec.layer_norm_eps).sqrt()
        return normal * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _layer(self, x: Tensor, is_token: Tensor, name: str) -> Tensor:
        batch, length, width = x.shape
        spec = self.spec

        def heads(part: str) -> Tensor:
            return self._linear(x, f"{name}.{part}").view(batch, length, spec.num_heads, -1).transpose(1, 2)

        query, key, value = heads("query"), heads("key"), self._note("value", heads("value"))
        scores = query @ key.transpose(-1, -2) / math.sqrt(spec.head_size)
        if spec.relative_buckets is not None:
            scores = scores + self._weights["relative_attention_bias.weight"].T[:, relative_buckets(length)]
        self._note("scores", scores)
        self._note("span", scores.amax(-1) - scores.amin(-1))
        if spec.softmax == "exact":
            weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * is_token
            weights = weights / weights.sum(-1, keepdim=True)
        else:
            unnormalized = UNNORMALIZED[spec.softmax](scores) * is_token
            self._note("row_sum", unnormalized.sum(-1))
            self._note("context", unnormalized @ value / length)
            weights = attention_weights(scores, is_token.bool(), spec.softmax)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        x = self._norm(x + self._linear(mixed, f"{name}.attention_output"), f"{name}.attention_norm", attended=True)
        inner = self._note("inner", self._linear(x, f"{name}.intermediate"))
        outer = self._linear(_ACTIVATIONS[spec.hidden_act](inner), f"{name}.output")
        return self._norm(x + outer, f"{name}.output_norm")
