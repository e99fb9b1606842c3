# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A BERT with sparse layers on shares: its feed-forward layers are mixtures of experts, which tokens choose in secret.

Reference: Fedus, Zoph and Shazeer, Switch Transformers (2021).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .architecture import copy_linear, exact_only, register
from .bert import BertArchitecture
from .spec import EncoderSpec


@register
class SecureMoeArchitecture(BertArchitecture):
    """`SecureMoeModel` and `SecureMoeForSequenceClassification`."""

    model_type = "secure_moe"

    def spec(self, config: Any, **chosen: str) -> EncoderSpec:
        exact_only(self.model_type, precision=chosen.get("precision", "full"))
        return replace(
            super().spec(config, **chosen),
            sparse_layers=tuple(index for index in range(config.num_hidden_layers) if config.is_sparse(index)),
            num_experts=config.num_experts,
            experts_per_token=config.num_experts_per_tok,
            expert_capacity=config.expert_capacity,
        )

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for index, layer in enumerate(encoder.encoder.layer):
            attention, own = layer.attention, f"layers.{index}"
            for name, module in {
                "query": attention.self.query,
                "key": attention.self.key,
                "value": attention.self.value,
                "attention_output": attention.output.dense,
                "attention_norm": attention.output.LayerNorm,
                "output_norm": layer.output.LayerNorm,
            }.items():
                copy_linear(weights, f"{own}.{name}", module)
            if not encoder.config.is_sparse(index):
                copy_linear(weights, f"{own}.intermediate", layer.intermediate.dense)
                copy_linear(weights, f"{own}.output", layer.output.dense)
                continue
            mixture = layer.intermediate
            weights[f"{own}.router.weight"] = _stacked([mixture.router.weight])[0]
            for name, modules in {
                "experts.intermediate": [expert.intermediate.dense for expert in mixture.experts],
                "experts.output": [expert.dense for expert in mixture.experts],
            }.items():
                weights[f"{own}.{name}.weight"] = _stacked([module.weight for module in modules])
                weights[f"{own}.{name}.bias"] = _stacked([module.bias for module in modules])
        return weights


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Float32 copies of tensors, one expert after another."""
    return torch.stack([tensor.detach().to("cpu", torch.float32) for tensor in tensors])
