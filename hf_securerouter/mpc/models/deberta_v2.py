# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""DeBERTa-v2 and DeBERTa-v3 on shares: BERT's layers, with scores between contents and relative positions.

A query meets the key of its distance from a token, and a token's key meets the query of that distance. Both are tables
of fixed weights, which the owner computes once for each layer. See `log_buckets` for the entry that a pair reads.

References:
    He et al., DeBERTa: Decoding-enhanced BERT with Disentangled Attention (2021); DeBERTaV3 (2023).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .architecture import ACTIVATIONS, activation_problems, register
from .bert import BertArchitecture
from .spec import EncoderSpec, HeadSpec, Problem


TERMS = ("c2p", "p2c")  # content to position, position to content


@register
class DebertaV2Architecture(BertArchitecture):
    """`DebertaV2Model` and `DebertaV2ForSequenceClassification`: pooler (dense, GELU) and classifier on the first
    token. The client adds absolute positions and token types, where a model has them."""

    model_type = "deberta-v2"

    def problems(self, config: Any, path: str) -> list[Problem]:
        found = super().problems(config, path)
        found += activation_problems(config.pooler_hidden_act, f"{path}.config.pooler_hidden_act")
        if getattr(config, "conv_kernel_size", 0) > 0:
            found.append(
                Problem(
                    f"{path}.config.conv_kernel_size",
                    "a convolution over tokens behind the first layer has no counterpart on shares",
                    "Use a model without it, such as DeBERTa-v3",
                )
            )
        if not config.relative_attention:
            found.append(
                Problem(
                    f"{path}.config.relative_attention",
                    "attention without relative positions is scaled as if it had them",
                    "Use a model with `relative_attention=True`",
                )
            )
        width = config.hidden_size // config.num_attention_heads
        if getattr(config, "attention_head_size", width) != width:
            found.append(
                Problem(
                    f"{path}.config.attention_head_size",
                    f"it is {config.attention_head_size}, and heads on shares are {width} wide",
                    "Use a model whose heads together are as wide as a hidden state",
                )
            )
        span, limit = _positions(config)
        if limit is not None and not 1 <= span // 2 < limit - 1:
            found.append(
                Problem(
                    f"{path}.config.position_buckets",
                    f"{span} buckets do not divide {limit} distances",
                    "Use a model with at least 2 buckets, and fewer than twice `max_relative_positions`",
                )
            )
        return found

    def spec(self, config: Any, **chosen: str) -> EncoderSpec:
        span, limit = _positions(config)
        head = HeadSpec("head.dense", ACTIVATIONS[config.pooler_hidden_act], "head.classifier", config.num_labels)
        terms = _terms(config)
        if terms:
            return replace(
                super().spec(config, **chosen),
                head=head,
                position_terms=terms,
                position_span=span,
                position_limit=limit,
            )
        return replace(super().spec(config, **chosen), head=head)

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights, config, stack = super().encoder_weights(encoder), encoder.config, encoder.encoder
        embeddings = stack.rel_embeddings.weight.detach().to("cpu", torch.float64)
        if "layer_norm" in stack.norm_rel_ebd:
            norm = stack.LayerNorm
            gamma, beta = (one.detach().to("cpu", torch.float64) for one in (norm.weight, norm.bias))
            embeddings = functional.layer_norm(embeddings, embeddings.shape[-1:], gamma, beta, norm.eps)
        shared = getattr(config, "share_att_key", False)
        for index, layer in enumerate(stack.layer):
            own = layer.attention.self
            for term, name, module in (
                ("c2p", "position_keys", "key_proj" if shared else "pos_key_proj"),
                ("p2c", "position_queries", "query_proj" if shared else "pos_query_proj"),
            ):
                if term in _terms(config):
                    linear = getattr(own, module)
                    matrix, bias = (one.detach().to("cpu", torch.float64) for one in (linear.weight, linear.bias))
                    table = functional.linear(embeddings, matrix, bias).float().contiguous()
                    weights[f"layers.{index}.{name}.weight"] = table
        return weights

    def embed(self, embeddings: Any, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        with torch.no_grad():
            return embeddings(input_ids=input_ids, token_type_ids=token_type_ids).float()


def _terms(config: Any) -> tuple[str, ...]:
    """The terms between contents and positions that the scores have."""
    return tuple(term for term in TERMS if term in (config.pos_att_type or ()))


def _positions(config: Any) -> tuple[int, int | None]:
    """Entries of the tables in each direction and, with buckets, the number of distances that they divide."""
    limit = getattr(config, "max_relative_positions", -1)
    limit = config.max_position_embeddings if limit < 1 else limit
    buckets = getattr(config, "position_buckets", -1)
    return (buckets, limit) if buckets > 0 else (limit, None)
