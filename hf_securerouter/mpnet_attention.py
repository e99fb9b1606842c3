# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""MPNet's attention with another softmax or precision; transformers writes the exact one into MPNet's layers.

The classes of an expert's modules change in place, as in `fixed_point_layers.py`; parameters keep their values and
their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class ReplacedAttention(MPNetSelfAttention):
    """MPNet's attention around a function of transformers' attention interface, which also takes `position_bias`, the
    relative attention bias that is added to the scores."""

    attend: Attend

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        r"""
        Args:
            hidden_states (`torch.Tensor`): (B, T, H).
            attention_mask (`torch.Tensor`, *optional*): Added to scores, 0 for tokens and less for padding; broadcasts
                to (B, heads, T, T).
            position_bias (`torch.Tensor`, *optional*): Added to scores; broadcasts to (B, heads, T, T).
            output_attentions (`bool`): Whether to return the attention weights, too.

        Returns:
            `tuple[torch.Tensor, ...]`: The attention's output, (B, T, H), and with `output_attentions` the weights,
            (B, heads, T, T).
        """
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (part(hidden_states).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        context, weights = self.attend(
            self,
            query,
            key,
            value,
            None if attention_mask is None else attention_mask >= 0,  # it is added to scores: 0 for tokens
            dropout=self.dropout.p if self.training else 0.0,
            position_bias=position_bias,
        )
        output = self.o(context.reshape(hidden_states.shape))
        return (output, weights) if output_attentions else (output,)


def replace_attention(expert: PreTrainedModel, attend: Attend) -> None:
    """Change an MPNet classifier, in place, to compute attention by a function of transformers' interface."""
    for module in expert.modules():
        if isinstance(module, MPNetSelfAttention):
            module.__class__ = ReplacedAttention
            module.attend = attend  # type: ignore[assignment]


def relative_bias(expert: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor | None:
    """The relative attention bias that every layer of an expert adds to its scores, None without one.

    Args:
        expert (`PreTrainedModel`): A classifier of any family.
        rows (`torch.Tensor`): Hidden states or anything else of shape (B, T, ...).

    Returns:
        `torch.Tensor` of shape (B, heads, T, T), or None.
    """
    if expert.config.model_type != "mpnet":
        return None
    encoder: Any = expert.base_model.encoder
    return encoder.compute_position_bias(rows)
