# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""RoBERTa on shares: BERT's layers under another head.

Positions are numbered from the padding token's id on and skip padding, so they depend on the token ids; the client
computes them, as the embeddings are in clear.

Reference: Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach (2019).
"""

from __future__ import annotations

from .architecture import register
from .bert import BertArchitecture


@register
class RobertaArchitecture(BertArchitecture):
    """`RobertaModel` and `RobertaForSequenceClassification`: dense, tanh and out_proj on the first token."""

    model_type = "roberta"


@register
class XlmRobertaArchitecture(RobertaArchitecture):
    """`XLMRobertaModel` and `XLMRobertaForSequenceClassification`: RoBERTa with a large multilingual vocabulary, whose
    table stays at the client."""

    model_type = "xlm-roberta"
