# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""ALBERT on shares: few layers, run many times each, on projected embeddings.

Reference: Lan et al., ALBERT: A Lite BERT for Self-supervised Learning of Language Representations (2020).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import copy_linear, register
from .bert import BertArchitecture
from .spec import EncoderSpec


@register
class AlbertArchitecture(BertArchitecture):
    """`AlbertModel` and `AlbertForSequenceClassification`: pooler (a linear layer, tanh) and classifier.

    The weights of layer j of hidden group g are `layers.{g * inner_group_num + j}`. The embeddings are projected even
    where they are as wide as the layers.
    """

    model_type = "albert"

    def spec(self, config: Any, **chosen: str) -> EncoderSpec:
        spec = super().spec(config, **chosen)
        # As in `AlbertTransformer`: each of the layers runs one group, which runs all of its inner layers.
        per_group = config.num_hidden_layers / config.num_hidden_groups
        groups = [int(index / per_group) for index in range(config.num_hidden_layers)]
        inner = range(config.inner_group_num)
        layer_map = tuple(group * len(inner) + layer for group in groups for layer in inner)
        return replace(spec, num_layers=len(layer_map), layer_map=layer_map, embedding_size=config.embedding_size)

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights = super().encoder_weights(encoder)
        copy_linear(weights, "embedding_projection", encoder.encoder.embedding_hidden_mapping_in)
        return weights
