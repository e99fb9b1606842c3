# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""BERT on shares.

Reference: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import ACTIVATIONS, Architecture, activation_problems, register
from .spec import EncoderSpec, HeadSpec, Problem


@register
class BertArchitecture(Architecture):
    """`BertModel` and `BertForSequenceClassification`: pooler (dense, tanh) and classifier on the first token."""

    model_type = "bert"

    def problems(self, config: Any, path: str) -> list[Problem]:
        found = activation_problems(config.hidden_act, f"{path}.config.hidden_act")
        position = getattr(config, "position_embedding_type", None) or "absolute"
        if position != "absolute":
            found.append(
                Problem(
                    f"{path}.config.position_embedding_type",
                    f"position embeddings of the kind {position!r} are computed inside the layers",
                    "Use a model with absolute position embeddings",
                )
            )
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            found.append(Problem(f"{path}.config.is_decoder", "a decoder is not an encoder", "Set `is_decoder=False`"))
        return found

    def spec(
        self, config: Any, *, softmax: str = "exact", hidden_act: str = "exact", precision: str = "full"
    ) -> EncoderSpec:
        return EncoderSpec(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=ACTIVATIONS[config.hidden_act] if hidden_act == "exact" else hidden_act,
            softmax=softmax,
            layer_norm_eps=config.layer_norm_eps,
            layer_map=tuple(range(config.num_hidden_layers)),
            head=HeadSpec("head.dense", "tanh", "head.classifier", config.num_labels),
            precision=precision,
        )

    def embed(self, embeddings: Any, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        if embeddings.token_type_embeddings.num_embeddings == 1:
            token_type_ids = None  # as in clear: a tokenizer shared with other experts may produce type 1
        with torch.no_grad():
            return embeddings(input_ids=input_ids, token_type_ids=token_type_ids).float()
