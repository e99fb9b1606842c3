# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""ELECTRA on shares: BERT's layers, often wider than its embeddings.

Reference: Clark et al., ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators (2020).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import copy_linear, register
from .bert import BertArchitecture
from .spec import EncoderSpec


@register
class ElectraArchitecture(BertArchitecture):
    """`ElectraModel` and `ElectraForSequenceClassification`: dense, GeLU and out_proj on the first token.

    There is a projection only where `embedding_size` and `hidden_size` differ.
    """

    model_type = "electra"

    def spec(self, config: Any, **chosen: str) -> EncoderSpec:
        spec = super().spec(config, **chosen)
        return replace(
            spec,
            head=replace(spec.head, activation="gelu"),
            embedding_size=None if config.embedding_size == config.hidden_size else config.embedding_size,
        )

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights = super().encoder_weights(encoder)
        if hasattr(encoder, "embeddings_project"):
            copy_linear(weights, "embedding_projection", encoder.embeddings_project)
        return weights
