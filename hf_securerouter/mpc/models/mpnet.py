# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""MPNet on shares: RoBERTa with one relative attention bias, which every layer adds to its scores.

The bias is a secret table that is read at public places, see `relative_positions`. Positions skip padding, which is
token 1 whatever the config says; the client computes them, as the embeddings are in clear.

Reference: Song et al., MPNet: Masked and Permuted Pre-training for Language Understanding (2020).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .architecture import register
from .bert import BertArchitecture
from .relative_positions import BUCKETS
from .spec import EncoderSpec, Problem


@register
class MPNetArchitecture(BertArchitecture):
    """`MPNetModel` and `MPNetForSequenceClassification`: dense, tanh and out_proj on the first token.

    There are no token types.
    """

    model_type = "mpnet"

    def problems(self, config: Any, path: str) -> list[Problem]:
        found, buckets = super().problems(config, path), config.relative_attention_num_buckets
        if buckets != BUCKETS:
            found.append(
                Problem(
                    f"{path}.config.relative_attention_num_buckets",
                    f"it is {buckets}, and the model reads {BUCKETS} whatever it is",
                    f"Use a model with {BUCKETS}",
                )
            )
        return found

    def spec(self, config: Any, **chosen: str) -> EncoderSpec:
        return replace(super().spec(config, **chosen), relative_buckets=BUCKETS)

    def encoder_weights(self, encoder: Any) -> dict[str, Tensor]:
        weights, table = super().encoder_weights(encoder), encoder.encoder.relative_attention_bias.weight
        weights["relative_attention_bias.weight"] = table.detach().to("cpu", torch.float32).clone().contiguous()
        return weights

    def embed(self, embeddings: Any, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        with torch.no_grad():
            return embeddings(input_ids=input_ids).float()
