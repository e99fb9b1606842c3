# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Classifiers of known shapes with random weights, to measure: cost depends on shapes and not on values.

Vocabularies are small, since embedding tables stay at the client and cost nothing on shares.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    BertConfig,
    DebertaV2Config,
    EuroBertConfig,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    PreTrainedConfig,
    XLMRobertaConfig,
)

from ..configuration_moe import SecureMoeConfig


MOE_EXPERTS = (8, 16, 32, 64, 128)
VOCABULARY = 1000
_SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}


def _bert_like(kind: Any, layers: int, width: int, heads: int, inner: int, positions: int) -> PreTrainedConfig:
    return kind(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions + 2,
    )


def _modern(layers: int, width: int, heads: int, inner: int, positions: int) -> PreTrainedConfig:
    special = _SPECIAL | {"cls_token_id": 1, "sep_token_id": 2}
    return _bert_like(partial(ModernBertConfig, **special), layers, width, heads, inner, positions)


def _moe(layers: int, width: int, heads: int, inner: int, experts: int, positions: int) -> PreTrainedConfig:
    return _bert_like(partial(SecureMoeConfig, num_experts=experts), layers, width, heads, inner, positions)


# The shapes of T5-small and T5-base with experts in every second layer are SecMoE's and Switch's (2026, 2021).
# Devlin et al. 2019; Turc et al. 2019; Warner et al. 2024; Weller et al. 2025 (Ettin); Boizard et al. 2025.
ARCHITECTURES: dict[str, Callable[[int], PreTrainedConfig]] = {
    "bert-tiny": partial(_bert_like, BertConfig, 2, 128, 2, 512),
    "bert-base": partial(_bert_like, BertConfig, 12, 768, 12, 3072),
    "bert-large": partial(_bert_like, BertConfig, 24, 1024, 16, 4096),
    "xlm-roberta-base": partial(_bert_like, XLMRobertaConfig, 12, 768, 12, 3072),
    "deberta-v3-base": partial(_bert_like, partial(DebertaV2Config, **_DEBERTA), 12, 768, 12, 3072),
    "mpnet-base": partial(_bert_like, MPNetConfig, 12, 768, 12, 3072),
    "modernbert-base": partial(_modern, 22, 768, 12, 1152),
    "modernbert-large": partial(_modern, 28, 1024, 16, 2624),
    "ettin-17m": partial(_modern, 7, 256, 4, 384),
    "eurobert-210m": partial(
        _bert_like, partial(EuroBertConfig, **_SPECIAL, classifier_pooling="mean"), 12, 768, 12, 3072
    ),
    "nomic-bert": partial(_bert_like, partial(NomicBertConfig, **_SPECIAL), 12, 768, 12, 3072),
    **{f"moe-small-{experts}": partial(_moe, 6, 512, 8, 2048, experts) for experts in MOE_EXPERTS},
    **{f"switch-base-{experts}": partial(_moe, 12, 768, 12, 3072, experts) for experts in (8, 16)},
}


def config_of(architecture: str, seq_length: int) -> PreTrainedConfig:
    """The config of a known name, for inputs of `seq_length` tokens."""
    return ARCHITECTURES[architecture](max(512, seq_length))
