# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A classifier on a pooled row of an encoder, as sentence-transformers and SetFit build it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_pooled import PooledEncoderConfig
from .errors import SecureRouterValueError


DENSE_ACTIVATIONS = {"identity": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


def pooled_row(hidden: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One row of each input.

    Args:
        hidden (`torch.Tensor` of shape (B, T, H)): The encoder's last hidden states.
        attention_mask (`torch.Tensor` of shape (B, T), *optional*): 1 for tokens, 0 for padding; no padding if None.
        pooling (`str`): `"mean"`, the mean of the tokens' rows, or `"first"`, the first token's row.

    Returns:
        `torch.Tensor` of shape (B, H).
    """
    if pooling == "first":
        return hidden[:, 0]
    if attention_mask is None:
        return hidden.mean(1)
    live = attention_mask[:, :, None].to(hidden.dtype)
    return (hidden * live).sum(1) / live.sum(1)


class PooledEncoderForSequenceClassification(PreTrainedModel):
    r"""An encoder, a pooled row of its last hidden states, and a linear classifier on it.

    Logits are `classifier(normalize(activation(dense(row))))`, where the dense layer and the division by the row's
    length are optional. Make one of a folder of sentence-transformers or SetFit with
    [`classifier_from_sentence_transformer`]; it is then saved, loaded, routed and encrypted as any other classifier.

    Args:
        config (`PooledEncoderConfig`): A config with an encoder.
        body (`PreTrainedModel`, *optional*): A loaded encoder, instead of a new one.

    Raises:
        `SecureRouterValueError`: The config has no encoder.
    """

    config: PooledEncoderConfig
    config_class = PooledEncoderConfig
    base_model_prefix = "body"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch

    def __init__(self, config: PooledEncoderConfig, body: PreTrainedModel | None = None):
        requested_attention = config._attn_implementation  # before the base class sets its own default
        super().__init__(config)
        inner: Any = config.text_config
        if inner is None:
            raise SecureRouterValueError(
                "`text_config` is None: pass the config of an encoder, or make the classifier with "
                "`classifier_from_sentence_transformer`."
            )
        if requested_attention is not None:
            inner._attn_implementation = requested_attention
        self.body: Any = body or AutoModel.from_config(inner, dtype=torch.get_default_dtype())
        config.text_config = self.body.config  # one object, so that changes to the encoder are saved
        config._attn_implementation = self.body.config._attn_implementation  # what a copy of this config asks for
        if getattr(self.body, "pooler", None) is not None:
            self.body.pooler = None  # the row is not the pooler's output
        self._supports_attention_backend = self.body._supports_attention_backend
        self._no_split_modules = self.body._no_split_modules
        width = self.body.config.hidden_size
        self.dense = None if config.dense_size is None else nn.Linear(width, config.dense_size)
        self.activation = DENSE_ACTIVATIONS[config.dense_act]()
        self.classifier = nn.Linear(config.dense_size or width, config.num_labels or 0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        r"""Classifies a batch.

        Args:
            input_ids (`torch.LongTensor` of shape (B, T)): Token ids.
            attention_mask (`torch.Tensor` of shape (B, T), *optional*): 1 for tokens, 0 for padding on the right.
            token_type_ids (`torch.LongTensor` of shape (B, T), *optional*): 0 for the first text, 1 for its pair;
                not read if the encoder has no token types.
            labels (`torch.Tensor`, *optional*): Classes, shape (B,), for the loss.

        Returns:
            `SequenceClassifierOutput` with logits of shape (B, C).
        """
        if getattr(self.body.config, "type_vocab_size", 0) > 1:
            kwargs["token_type_ids"] = token_type_ids
        hidden = self.body(input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        row = pooled_row(hidden, attention_mask, self.config.pooling)
        if self.dense is not None:
            row = self.activation(self.dense(row))
        if self.config.normalize:
            row = functional.normalize(row, dim=-1)
        logits = self.classifier(row)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


# Here and not in `registration`: a pool's checkpoint on the Hub brings this file, and perhaps not the package.
AutoModelForSequenceClassification.register(PooledEncoderConfig, PooledEncoderForSequenceClassification, exist_ok=True)


__all__ = ["PooledEncoderForSequenceClassification"]
