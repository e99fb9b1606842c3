# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A pooled encoder on shares: the layers of its encoder's architecture, then a pooled row and a head of its own.

A dense layer without activation is multiplied into the classifier by the owner. Where a row is divided by its length,
the dense layer stays, or is the identity if there is none: it is where the last LayerNorm's gamma and beta are folded.

Reference: Reimers and Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks (2019).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, architecture_for, copy_linear, register
from .spec import EncoderSpec, HeadSpec, Problem


@register
class PooledEncoderArchitecture(Architecture):
    """`PooledEncoderForSequenceClassification`."""

    model_type = "pooled_encoder"

    def problems(self, config: Any, path: str) -> list[Problem]:
        inner = architecture_for(config.text_config.model_type)
        if inner is None:
            kind = config.text_config.model_type
            return [
                Problem(
                    f"{path}.body",
                    f"the architecture {kind!r} has no counterpart on shares",
                    "Use an encoder such as BERT, DistilBERT, RoBERTa, ELECTRA, ALBERT, MPNet or DeBERTa",
                )
            ]
        return inner.problems(config.text_config, f"{path}.body")

    def spec(self, config: Any, **chosen: str) -> EncoderSpec:
        inner = architecture_for(config.text_config.model_type)
        assert inner is not None, "validated"
        head = HeadSpec(
            dense="head.dense" if _has_dense(config) else None,
            activation=config.dense_act if config.dense_size is not None else "identity",
            classifier="head.classifier",
            num_outputs=config.num_labels,
            inner_size=config.dense_size if _has_dense(config) else None,
            normalize=config.normalize,
        )
        return replace(inner.spec(config.text_config, **chosen), head=head, pooling=config.pooling)

    def of_encoder(self, encoder: Any) -> Architecture:
        inner = architecture_for(encoder.config.model_type)
        assert inner is not None, "validated"
        return inner

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        return self.of_encoder(encoder).encoder_weights(encoder)

    def head_weights(self, model: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        copy_linear(weights, "head.classifier", model.classifier)
        if model.dense is not None:
            copy_linear(weights, "head.dense", model.dense)
        elif model.config.normalize:
            width = model.classifier.in_features
            weights |= {"head.dense.weight": torch.eye(width), "head.dense.bias": torch.zeros(width)}
        if model.dense is not None and not _has_dense(model.config):
            matrix, bias = (weights.pop(f"head.dense.{part}").double() for part in ("weight", "bias"))
            classifier = weights["head.classifier.weight"].double()
            weights["head.classifier.weight"] = (classifier @ matrix).float()
            weights["head.classifier.bias"] = (classifier @ bias + weights["head.classifier.bias"].double()).float()
        return weights


def _has_dense(config: Any) -> bool:
    """Whether the head has a first linear layer on shares."""
    return config.normalize or (config.dense_size is not None and config.dense_act != "identity")
