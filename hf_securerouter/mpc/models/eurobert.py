# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""EuroBERT on shares: RMSNorms before each step, rotary positions, and feed-forward layers gated by SiLU.

Heads that share keys and values get copies of the weights: each head then has its own, of equal values.

Reference: Boizard et al., EuroBERT: Scaling Multilingual Encoders for European Languages (2025).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import (
    ACTIVATIONS,
    Architecture,
    activation_problems,
    copy_gated_layers,
    copy_parts,
    exact_only,
    register,
    rotary_problems,
)
from .spec import EncoderSpec, HeadSpec, Problem


@register
class EuroBertArchitecture(Architecture):
    """`EuroBertModel` and `EuroBertForSequenceClassification`: first token or mean, dense, GeLU, classifier; or dense
    and GeLU of every token, their mean, classifier."""

    model_type = "eurobert"

    def problems(self, config: Any, path: str) -> list[Problem]:
        found = activation_problems(config.hidden_act, f"{path}.config.hidden_act")
        found += rotary_problems(config.rope_parameters, f"{path}.config.rope_parameters")
        width = config.hidden_size // config.num_attention_heads
        if config.head_dim not in (None, width):
            found.append(
                Problem(
                    f"{path}.config.head_dim",
                    f"heads of {config.head_dim} numbers do not divide the width of {config.hidden_size}",
                    f"Use a model with `head_dim={width}`",
                )
            )
        return found

    def spec(
        self, config: Any, *, softmax: str = "exact", hidden_act: str = "exact", precision: str = "full"
    ) -> EncoderSpec:
        exact_only(self.model_type, softmax=softmax, hidden_act=hidden_act, precision=precision)
        return EncoderSpec(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=ACTIVATIONS[config.hidden_act],
            softmax=softmax,
            layer_norm_eps=config.rms_norm_eps,
            layer_map=tuple(range(config.num_hidden_layers)),
            head=HeadSpec("head.dense", "gelu", "head.classifier", config.num_labels),
            pooling=_POOLINGS[config.classifier_pooling],
            norm_first=True,
            norm="rms",
            gated=True,
            rotary=(float(config.rope_parameters["rope_theta"]),) * config.num_hidden_layers,
        )

    def embeddings(self, encoder: Any) -> torch.nn.Module:
        return encoder.embed_tokens

    def embed(self, embeddings: Any, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        with torch.no_grad():
            return embeddings(input_ids).float()

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        copy_gated_layers(weights, encoder.layers, ("input_layernorm", "post_attention_layernorm"))
        copy_parts(weights, ["final_norm"], encoder.norm)
        width = encoder.config.hidden_size // encoder.config.num_attention_heads
        for name, values in weights.items():
            if name.split(".")[-2] in ("key", "value"):
                by_heads = values.unflatten(0, (-1, width))
                copies = encoder.config.num_attention_heads // len(by_heads)
                weights[name] = by_heads.repeat_interleave(copies, dim=0).flatten(0, 1).contiguous()
        return weights

    def head_weights(self, model: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        copy_parts(weights, ["head.dense"], model.dense)
        copy_parts(weights, ["head.classifier"], model.classifier)
        return weights


_POOLINGS = {"bos": "first", "mean": "mean", "late": "late"}
