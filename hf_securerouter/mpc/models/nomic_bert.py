# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""nomic-bert on shares: BERT's order of steps with rotary positions and gated feed-forward layers, without biases.

Reference: Nussbaum et al., Nomic Embed: Training a Reproducible Long Context Text Embedder (2024).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .architecture import exact_only, register
from .bert import BertArchitecture
from .modernbert import put_parts, rotary_problems
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

    def embed(self, embeddings: Any, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        with torch.no_grad():
            return embeddings(input_ids=input_ids, token_type_ids=token_type_ids).float()

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for index, layer in enumerate(encoder.layers):
            attention, own = layer.self_attn, layer.mlp
            for name, module in {
                "query": attention.q_proj,
                "key": attention.k_proj,
                "value": attention.v_proj,
                "attention_output": attention.o_proj,
                "attention_norm": layer.post_attention_layernorm,
                "intermediate": own.gate_proj,
                "gate": own.up_proj,
                "output": own.down_proj,
                "output_norm": layer.post_mlp_layernorm,
            }.items():
                put_parts(weights, [f"layers.{index}.{name}"], module)
        return weights
