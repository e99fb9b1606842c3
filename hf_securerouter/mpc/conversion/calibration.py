# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tighter bounds from sample inputs, measured with an encoder in clear.

Samples can only tighten the default bounds of the masked protocol, for narrower rings and shorter messages; they never
widen a default that an encoder exceeds. The bounds become part of the public manifest and so reveal a little about the
weights and the samples. A later input beyond a bound gives a wrong result without an error; only the margin guards
against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...lengths import copy_into_padding
from ...mpc_friendly import Quadratic, attention_weights
from ...number_format import MARGIN
from ..models import EncoderSpec
from ..models.relative_positions import relative_buckets
from ..protocols.masked.layout import member_weights
from .client import Text
from .converted import Converted


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "quadratic": Quadratic(),
}


class ClearEncoder:
    """An encoder as shares compute it, in float64 from the same weights; records the range of every bounded value.

    Args:
        spec (`EncoderSpec`): Its public shape.
        weights (`Mapping[str, torch.Tensor]`): By canonical name, matrices as (out, in).
    """

    def __init__(self, spec: EncoderSpec, weights: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self._weights = {name: values.double() for name, values in weights.items()}
        self.seen: dict[str, tuple[float, float]] = {}

    def __call__(self, x: Tensor, is_token: Tensor) -> Tensor:
        """Classify.

        Args:
            x (`torch.Tensor`): Embedding output, (B, T, H) float; padding rows are copies of a token's row.
            is_token (`torch.Tensor`): Attention mask, (B, T).

        Returns:
            `torch.Tensor`: Logits, (B, C) float64.
        """
        x = x.double()
        if "embedding_projection.weight" in self._weights:
            x = self._linear(x, "embedding_projection")
        for layer in self.spec.layer_map:
            x = self._layer(x, is_token[:, None, None, :].double(), f"layers.{layer}")
        head = self.spec.head
        row = self._note("head", self._linear(x[:, 0], head.dense))
        return self._note("logits", self._linear(_ACTIVATIONS[head.activation](row), head.classifier))

    def bounds(self) -> dict[str, int]:
        """log2 bounds of all values recorded so far, with the margin; named as in `Bounds`."""
        largest = {name: max(abs(low), abs(high)) for name, (low, high) in self.seen.items()}
        found = {
            name: math.ceil(math.log2(max(largest[name] * MARGIN, 2.0)))
            for name in ("value", "residual", "inner", "head", "logits")
        }
        # Scores lie within 2^(scores-1) of 0, and two scores of a row differ by less than 2^(scores-1) - 4; with a
        # relative attention bias by less than half of that, as shares move padding down by as much.
        span = largest["span"] * MARGIN + 4
        widest = max(largest["scores"] * MARGIN, span if self.spec.relative_buckets is None else 2 * span, 8.0)
        found["scores"] = math.ceil(math.log2(widest)) + 1
        low, high = self.seen["variance"]
        found["variance_low"] = math.floor(math.log2(max(low / MARGIN**2, 1e-9)))
        found["variance_high"] = math.ceil(math.log2(high * MARGIN**2))
        return found

    def _note(self, name: str, values: Tensor) -> Tensor:
        low, high = self.seen.get(name, (math.inf, -math.inf))
        self.seen[name] = min(low, float(values.min())), max(high, float(values.max()))
        return values

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, z: Tensor, name: str) -> Tensor:
        centred = self._note("residual", z - z.mean(-1, keepdim=True))
        variance = self._note("variance", centred.square().mean(-1, keepdim=True))
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
            weights = attention_weights(scores, is_token.bool(), spec.softmax)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        x = self._norm(x + self._linear(mixed, f"{name}.attention_output"), f"{name}.attention_norm")
        inner = self._note("inner", self._linear(x, f"{name}.intermediate"))
        outer = self._linear(_ACTIVATIONS[spec.hidden_act](inner), f"{name}.output")
        return self._norm(x + outer, f"{name}.output_norm")


def calibrated_bounds(
    converted: Converted, samples: Sequence[Text] | Mapping[str, Tensor]
) -> dict[str, dict[str, int]]:
    """Bounds of every member on sample inputs.

    Args:
        converted (`Converted`): The model with its default bounds.
        samples (`list` or `Mapping`): Inputs, as for a session.

    Returns:
        `dict[str, dict[str, int]]`: log2 bounds by member, as in `Manifest.bounds`; the bounds of a shared encoder are
        the expert's.
    """
    manifest = converted.manifest
    encoded = converted.client.tokenize(samples)
    is_token = encoded["attention_mask"]
    bounds = {}
    embedded = converted.client.embed(encoded)
    for member, spec in manifest.members.items():
        shared = manifest.encoder_of(member)
        encoder = ClearEncoder(spec, member_weights(manifest, member, converted.weights))
        own = embedded[shared]
        encoder(copy_into_padding(own, is_token), is_token[:, : own.shape[1]])
        bounds[member] = encoder.bounds()
        if shared != member:
            bounds[member] = {name: bounds[member][name] for name in ("head", "logits")}
    if manifest.selects:
        # One encoder computes with the weights of whichever expert is selected, so its bounds must hold for all.
        experts = [bounds[f"experts.{index}"] for index in range(len(manifest.experts))]
        loosest = {name: (min if name == "variance_low" else max)(own[name] for own in experts) for name in experts[0]}
        bounds |= {f"experts.{index}": loosest for index in range(len(experts))}
    return bounds
