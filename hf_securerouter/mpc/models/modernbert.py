# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""ModernBERT on shares, and with it Ettin, mmBERT and gte-modernbert: norms before each step, rotary positions, gated
feed-forward layers, and attention in a window in two layers of three.

The first layer's attention reads the embedding output, which has passed a norm at the client. The head's norm is a
LayerNorm over the row that it classifies.

Reference: Warner et al., Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder (2024).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .architecture import (
    ACTIVATIONS,
    Architecture,
    activation_problems,
    copy_parts,
    exact_only,
    register,
    rotary_problems,
)
from .spec import EncoderSpec, HeadSpec, Problem


@register
class ModernBertArchitecture(Architecture):
    """`ModernBertModel` and `ModernBertForSequenceClassification`: first token or mean, dense, activation, norm."""

    model_type = "modernbert"

    def problems(self, config: Any, path: str) -> list[Problem]:
        found = activation_problems(config.hidden_activation, f"{path}.config.hidden_activation")
        found += activation_problems(config.classifier_activation, f"{path}.config.classifier_activation")
        for kind, rope in config.rope_parameters.items():
            found += rotary_problems(rope or {}, f"{path}.config.rope_parameters.{kind}")
        return found

    def spec(
        self, config: Any, *, softmax: str = "exact", hidden_act: str = "exact", precision: str = "full"
    ) -> EncoderSpec:
        exact_only(self.model_type, softmax=softmax, hidden_act=hidden_act, precision=precision)
        kinds = config.layer_types[: config.num_hidden_layers]
        return EncoderSpec(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=ACTIVATIONS[config.hidden_activation],
            softmax=softmax,
            layer_norm_eps=config.norm_eps,
            layer_map=tuple(range(config.num_hidden_layers)),
            head=HeadSpec(
                "head.dense",
                ACTIVATIONS[config.classifier_activation],
                "head.classifier",
                config.num_labels,
                normalize=True,
                centred=True,
            ),
            pooling={"cls": "first", "mean": "mean"}[config.classifier_pooling],
            norm_first=True,
            bare_first=True,
            gated=True,
            rotary=tuple(float(config.rope_parameters[kind]["rope_theta"]) for kind in kinds),
            windows=tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds),
        )

    def embed(self, embeddings: Any, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        with torch.no_grad():
            return embeddings(input_ids=input_ids).float()

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for index, layer in enumerate(encoder.layers):
            own = f"layers.{index}"
            for names, module in (
                (("query", "key", "value"), layer.attn.Wqkv),
                (("attention_output",), layer.attn.Wo),
                (("intermediate", "gate"), layer.mlp.Wi),
                (("output",), layer.mlp.Wo),
                (("output_norm",), layer.mlp_norm),
                *(((("attention_norm",), layer.attn_norm),) if index else ()),
            ):
                copy_parts(weights, [f"{own}.{name}" for name in names], module)
        copy_parts(weights, ["final_norm"], encoder.final_norm)
        return weights

    def head_weights(self, model: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        copy_parts(weights, ["head.dense"], model.head.dense)
        copy_parts(weights, ["head.classifier"], model.classifier)
        copy_parts(weights, ["norm"], model.head.norm)
        # The head's norm is a division by the length of a row, so its weight and the root of the width are folded.
        gamma, beta = weights.pop("norm.weight"), weights.pop("norm.bias")
        weights["head.classifier.bias"] += weights["head.classifier.weight"] @ beta
        weights["head.classifier.weight"] *= gamma * math.sqrt(len(gamma))
        return weights
