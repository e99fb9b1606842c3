# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""DistilBERT on shares.

Reference: Sanh et al., DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter (2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import ACTIVATIONS, Architecture, activation_problems, register
from .spec import EncoderSpec, HeadSpec, Problem


# A constant in Hugging Face's `TransformerBlock`, not a field of the config.
LAYER_NORM_EPS = 1e-12


@register
class DistilBertArchitecture(Architecture):
    """`DistilBertModel` and `DistilBertForSequenceClassification`: pre_classifier, ReLU and classifier.

    There are no token types. Sinusoidal position embeddings are a table like any other.
    """

    model_type = "distilbert"

    def problems(self, config: Any, path: str) -> list[Problem]:
        return activation_problems(config.activation, f"{path}.config.activation")

    def spec(
        self, config: Any, *, softmax: str = "exact", hidden_act: str = "exact", precision: str = "full"
    ) -> EncoderSpec:
        return EncoderSpec(
            num_layers=config.n_layers,
            hidden_size=config.dim,
            num_heads=config.n_heads,
            intermediate_size=config.hidden_dim,
            hidden_act=ACTIVATIONS[config.activation] if hidden_act == "exact" else hidden_act,
            softmax=softmax,
            layer_norm_eps=LAYER_NORM_EPS,
            layer_map=tuple(range(config.n_layers)),
            head=HeadSpec("head.dense", "relu", "head.classifier", config.num_labels),
            precision=precision,
        )

    def embed(self, embeddings: Any, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        with torch.no_grad():
            return embeddings(input_ids=input_ids).float()
