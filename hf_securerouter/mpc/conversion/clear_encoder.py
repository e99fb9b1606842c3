# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder in clear text, computed as shares compute it, which records the range of every bounded value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...expert_places import served
from ...mpc_friendly import UNNORMALIZED, Quadratic, attention_weights
from ...number_format import deviation_ratio
from ..models import EncoderSpec
from ..models.log_buckets import entries_of_pairs
from ..models.relative_positions import relative_buckets
from ..models.rotary import rotary_tables, turned_by_quarter


# Least and largest value by position in the stack, None for the embeddings and the head, and by kind.
Seen = dict[tuple[int | None, str], tuple[float, float]]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "quadratic": Quadratic(),
    "identity": lambda x: x,
}


class ClearEncoder:
    """An encoder as shares compute it, from the same weights; records the range of every bounded value.

    Args:
        spec (`EncoderSpec`): Its public shape.
        weights (`Mapping[str, torch.Tensor]`): By canonical name, matrices as (out, in).
        dtype (`torch.dtype`): Type of all values; float32 is enough for ranges.

    Attributes:
        seen (`Seen`): What was recorded; kinds are named as in `Bounds`, with `span` (of a row's scores), `variance`
            (of a LayerNorm's input), `attended_variance` (of the LayerNorm behind attention) and `norm` (the mean
            square of a row that the head divides by its length). On shares the sum of squares of a row of d numbers
            is divided by 2^ceil(log2 d), not by d, and so it is here.
    """

    def __init__(self, spec: EncoderSpec, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.spec = spec
        self.dtype = dtype
        self._weights = {name: values.to(dtype) for name, values in weights.items()}
        self._position: int | None = None
        self._is_token: Tensor
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
        step = self._norm_first_layer if self.spec.norm_first else self._layer
        for position, layer in enumerate(self.spec.layer_map):
            self._position = position
            self._is_token = is_token
            x = step(x, self._met(is_token), f"layers.{layer}")
        if self.spec.norm_first:
            x = self._norm(x, "final_norm")
        self._position = None
        if self.spec.pooling == "late":
            return self._classified(self._mean(self._active(x), is_token))
        return self._head(x[:, 0] if self.spec.pooling == "first" else self._mean(x, is_token))

    def _met(self, is_token: Tensor) -> Tensor:
        """Whether a query meets a key in this layer, (B, 1, 1 or T, T) as numbers: in a window also its own, so that
        no row is empty."""
        met = is_token[:, None, None, :].to(self.dtype)
        reach = self.spec.windows[self._position or 0] if self.spec.windows else None
        if reach is None or reach >= is_token.shape[1] - 1:
            return met
        place = torch.arange(is_token.shape[1])
        distance = (place[:, None] - place).abs()
        return torch.where(distance == 0, 1.0, met) * (distance <= reach).to(self.dtype)

    def _mean(self, x: Tensor, is_token: Tensor) -> Tensor:
        """The mean of the tokens' rows of each input."""
        live = is_token[:, :, None].to(self.dtype)
        return (x * live).sum(1) / live.sum(1)

    def _active(self, rows: Tensor) -> Tensor:
        """The head's first linear layer and its activation."""
        head = self.spec.head
        if head.dense is None:
            return rows
        return _ACTIVATIONS[head.activation](self._product(rows, head.dense, "head", self._joint))

    def _head(self, row: Tensor) -> Tensor:
        return self._classified(self._active(row))

    def _classified(self, row: Tensor) -> Tensor:
        head = self.spec.head
        if head.normalize:
            row = row - row.mean(-1, keepdim=True) if head.centred else row
            square = row.square().mean(-1, keepdim=True)
            self._note("norm", square * deviation_ratio(row.shape[-1]) ** 2)
            eps = self.spec.layer_norm_eps if head.centred else 0.0
            row = row / ((square + eps) * row.shape[-1]).sqrt()
        joint = head.centred or (head.dense is None and self._joint)
        return self._product(row, head.classifier, "logits", joint)

    def _note(self, kind: str, values: Tensor) -> Tensor:
        low, high = self.seen.get((self._position, kind), (math.inf, -math.inf))
        least, largest = torch.aminmax(values)
        # numpy's minimum and maximum keep a NaN, which Python's would lose.
        self.seen[self._position, kind] = float(np.minimum(low, float(least))), float(np.maximum(high, float(largest)))
        return values

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    @property
    def _joint(self) -> bool:
        """Whether a head reads the first token's row of a norm whose division comes behind the head's first matrix."""
        return self.spec.norm_first and self.spec.pooling == "first"

    def _product(self, x: Tensor, name: str, kind: str, joint: bool) -> Tensor:
        """A bounded product; also without its bias, if it is divided before its bias is added."""
        product = self._linear(x, name)
        if joint:
            self._note(kind, product - self._weights[f"{name}.bias"])
        return self._note(kind, product)

    def _norm(self, z: Tensor, name: str, attended: bool = False) -> Tensor:
        centred = self._note("residual", z - z.mean(-1, keepdim=True) if self.spec.norm == "layer" else z)
        variance = centred.square().mean(-1, keepdim=True)
        for kind in ("variance", "attended_variance")[: 1 + attended]:
            self._note(kind, variance * deviation_ratio(z.shape[-1]) ** 2)
        normal = centred / (variance + self.spec.layer_norm_eps).sqrt()
        return normal * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _layer(self, x: Tensor, met: Tensor, name: str) -> Tensor:
        x = self._norm(x + self._attention(x, met, name), f"{name}.attention_norm", attended=True)
        step = self._mixture if self._position in self.spec.sparse_layers else self._feed_forward
        return self._norm(x + step(x, name), f"{name}.output_norm")

    def _norm_first_layer(self, x: Tensor, met: Tensor, name: str) -> Tensor:
        bare = self.spec.bare_first and not self._position
        x = x + self._attention(x if bare else self._norm(x, f"{name}.attention_norm"), met, name)
        return x + self._feed_forward(self._norm(x, f"{name}.output_norm", attended=True), name)

    def _feed_forward(self, x: Tensor, name: str) -> Tensor:
        joint = self._joint and self._position == self.spec.num_layers - 1
        inner = _ACTIVATIONS[self.spec.hidden_act](self._product(x, f"{name}.intermediate", "inner", joint))
        if self.spec.gated:
            inner = inner * self._product(x, f"{name}.gate", "gate", joint)
        return self._linear(inner, f"{name}.output")

    def _mixture(self, x: Tensor, name: str) -> Tensor:
        """The mixture of a sparse layer. On shares padding takes no expert's place, and is served if there are no
        places."""
        spec = self.spec
        scores = self._note("routing", x @ self._weights[f"{name}.router.weight"].T)
        best, chosen = scores.softmax(-1).topk(spec.experts_per_token, -1)
        live = self._is_token.bool() if spec.expert_capacity is not None else torch.ones(x.shape[:2], dtype=torch.bool)
        scale = best * served(chosen, live, spec.num_experts, spec.expert_capacity)
        parts = "intermediate.weight", "intermediate.bias", "output.weight", "output.bias"
        mixed = torch.zeros_like(x)
        for expert in range(spec.num_experts):
            own = (scale * (chosen == expert)).sum(-1)
            rows = own.nonzero(as_tuple=True)
            if not len(rows[0]):
                continue
            matrix, bias, last, last_bias = (self._weights[f"{name}.experts.{part}"][expert] for part in parts)
            inner = self._note("inner", functional.linear(x[rows], matrix, bias))
            outputs = functional.linear(_ACTIVATIONS[spec.hidden_act](inner), last, last_bias)
            self._note("expert", outputs - outputs.mean(-1, keepdim=True))
            mixed[rows] += outputs * own[rows][:, None]
        return mixed

    def _attention(self, x: Tensor, met: Tensor, name: str) -> Tensor:
        batch, length, width = x.shape
        spec = self.spec

        def heads(part: str) -> Tensor:
            return self._linear(x, f"{name}.{part}").view(batch, length, spec.num_heads, -1).transpose(1, 2)

        query, key, value = heads("query"), heads("key"), self._note("value", heads("value"))
        if spec.rotary:
            tables = rotary_tables(length, spec.head_size, spec.rotary[self._position or 0])
            cos, sin = (table.to(self.dtype) for table in tables)
            query, key = (one * cos + turned_by_quarter(one) * sin for one in (query, key))
        scores = query @ key.transpose(-1, -2)
        if spec.position_terms:
            scores = scores + self._of_positions(query, key, name)
        scores = scores * spec.score_scale
        if spec.relative_buckets is not None:
            scores = scores + self._weights["relative_attention_bias.weight"].T[:, relative_buckets(length)]
        if spec.windows:  # scores out of reach are not computed
            own = scores.diagonal(dim1=-2, dim2=-1)[..., None]
            place = torch.arange(length)
            reach = spec.windows[self._position or 0]
            near = (place[:, None] - place).abs() <= (length if reach is None else reach)
            scores = torch.where(near, scores, own)
        self._note("scores", scores + 5 if spec.softmax == "2quad" else scores)  # what 2Quad squares
        self._note("span", scores.amax(-1) - scores.amin(-1))
        if spec.softmax == "exact":
            weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * met
            weights = weights / weights.sum(-1, keepdim=True)
        else:
            unnormalized = UNNORMALIZED[spec.softmax](scores) * met
            self._note("row_sum", unnormalized.sum(-1))
            self._note("context", unnormalized @ value / length)
            weights = attention_weights(scores, met.bool(), spec.softmax)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        return self._linear(mixed, f"{name}.attention_output")

    def _of_positions(self, query: Tensor, key: Tensor, name: str) -> Tensor:
        """The terms of the scores between contents and positions, from queries and keys (B, heads, T, d)."""
        spec, total = self.spec, torch.zeros((), dtype=self.dtype)
        pairs = entries_of_pairs(query.shape[-2], spec.position_span, spec.position_limit)
        pairs = pairs.expand(*query.shape[:-2], -1, -1)

        def products(content: Tensor, part: str) -> Tensor:
            table = self._weights[f"{name}.{part}.weight"]
            return content @ table.view(len(table), spec.num_heads, -1).permute(1, 2, 0)

        if "c2p" in spec.position_terms:
            total = total + products(query, "position_keys").gather(-1, pairs)
        if "p2c" in spec.position_terms:
            total = total + products(key, "position_queries").transpose(-1, -2).gather(-2, pairs)
        return total
