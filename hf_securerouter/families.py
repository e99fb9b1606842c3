# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What this package knows of a family of encoders: where its layers stand, and how it numbers positions."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig


# These families number positions from `pad_token_id + 1`, so that as many rows of the table serve no token.
_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"}
    | {"xlm-roberta-xl", "xmod"}
)


def usable_positions(config: PreTrainedConfig) -> int | None:
    """The longest input, in tokens and special tokens included, that an encoder of this config has positions for."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.model_type in _OFFSET_POSITIONS:
        positions -= (getattr(config, "pad_token_id", None) or 0) + 1
    return positions


# Where the layers of a classifier stand: for each layer query, key, value, attention_output, attention_norm,
# intermediate, output and output_norm; the embeddings' norm; the two layers of the head.


def _bert_layer(layer: Any) -> tuple[Any, ...]:
    attention = layer.attention
    own = attention.self
    inner = (attention.output.dense, attention.output.LayerNorm, layer.intermediate.dense)
    return (own.query, own.key, own.value, *inner, layer.output.dense, layer.output.LayerNorm)


def _distilbert_layer(layer: Any) -> tuple[Any, ...]:
    own = layer.attention
    inner = (own.out_lin, layer.sa_layer_norm, layer.ffn.lin1)
    return (own.q_lin, own.k_lin, own.v_lin, *inner, layer.ffn.lin2, layer.output_layer_norm)


def layer_parts(expert: Any) -> tuple[list[tuple[Any, ...]], nn.Module, tuple[nn.Module, nn.Module]]:
    base = expert.base_model
    if expert.config.model_type == "distilbert":
        head = expert.pre_classifier, expert.classifier
        return [_distilbert_layer(layer) for layer in base.transformer.layer], base.embeddings.LayerNorm, head
    layers = [_bert_layer(layer) for layer in base.encoder.layer]
    if expert.config.model_type == "bert":
        return layers, base.embeddings.LayerNorm, (base.pooler.dense, expert.classifier)
    return layers, base.embeddings.LayerNorm, (expert.classifier.dense, expert.classifier.out_proj)


FAMILIES = ("bert", "distilbert", "roberta")
