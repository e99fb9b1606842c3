# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""nomic-bert on shares: BERT's order of steps with rotary positions and gated feed-forward layers, without biases.

Reference: Nussbaum et al., Nomic Embed: Training a Reproducible Long Context Text Embedder (2024).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import copy_gated_layers, exact_only, register, rotary_problems
from .bert import BertArchitecture
from .spec import EncoderSpec, Problem


@register
class NomicBertArchitecture(BertArchitecture):
    """`NomicBertModel` and `NomicBertForSequenceClassification`: pooler (dense, tanh) and classifier on the first
    token."""

    model_type = "nomic_bert"

    def problems(self, config: Any, path: str) -> list[Problem]:
        return super().problems(config, path) + rotary_problems(
            config.rope_parameters, f"{path}.config.rope_parameters"
        )

    def spec(self, config: Any, **chosen: str) -> EncoderSpec:
        exact_only(self.model_type, **chosen)
        bases = (float(config.rope_parameters["rope_theta"]),) * config.num_hidden_layers
        return replace(super().spec(config, **chosen), gated=True, rotary=bases)

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        copy_gated_layers(weights, encoder.layers, ("post_attention_layernorm", "post_mlp_layernorm"))
        return weights
