# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""RoBERTa on shares: BERT's layers under another head.

Positions are numbered from the padding token's id on and skip padding, so they depend on the token ids; the client
computes them, as the embeddings are in clear.

Reference: Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach (2019).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .architecture import copy_linear, register
from .bert import BertArchitecture


@register
class RobertaArchitecture(BertArchitecture):
    """`RobertaModel` and `RobertaForSequenceClassification`: dense, tanh and out_proj on the first token."""

    model_type = "roberta"

    def head_weights(self, model: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        copy_linear(weights, "head.dense", model.classifier.dense)
        copy_linear(weights, "head.classifier", model.classifier.out_proj)
        return weights
