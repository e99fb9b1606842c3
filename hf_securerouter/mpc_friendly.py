# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Functions that can replace an expert's softmax and feed-forward activation, and cost less on secret shares.

An expert has to be trained with them; it computes the same functions in clear and on shares.

Reference:
    Li et al., MPCFormer: Fast, Performant and Private Transformer Inference with MPC, arXiv 2211.01452 (2Quad and the
    quadratic GeLU); Mohassel and Zhang, SecureML, 2017 (2ReLU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .configuration_securerouter import EXPERT_MPC_CHOICES
from .errors import SecureRouterValueError
from .families import activation_slots
from .fixed_point_layers import truncated, use_fixed_point
from .mpnet_attention import replace_attention
from .number_format import Bounds, current_precision, number_format, widest_distance
from .range_penalty import watch


SMALLEST_ROW_SUM = 2.0**Bounds.row_sum  # of unnormalised weights; on shares a smaller sum has no inverse
_PREFIX = "securerouter_"


class Quadratic(nn.Module):
    """x^2 / 8 + x / 4 + 1 / 2, close to GeLU between -2 and 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.125 * x * x + 0.25 * x + 0.5


def shifted_squares(scores: torch.Tensor) -> torch.Tensor:
    """Unnormalised attention weights of 2Quad: (score + 5)^2."""
    return (scores + 5).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"quadratic": Quadratic, "relu": nn.ReLU}
UNNORMALIZED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"2quad": shifted_squares, "2relu": functional.relu}


def attention_weights(scores: torch.Tensor, is_token: torch.Tensor | None, softmax: str) -> torch.Tensor:
    """Attention weights without softmax: unnormalised weights over their row sum.

    Args:
        scores (`torch.Tensor` of shape (..., T, T)): Attention scores, scaled, not masked.
        is_token (`torch.Tensor`, *optional*): False for keys that are padding; broadcasts to the shape of `scores`.
        softmax (`str`): `"2quad"` or `"2relu"`.

    Returns:
        `torch.Tensor` like `scores`. A row sums to 1, unless its unnormalised weights sum to less than 1/8.

    Raises:
        `SecureRouterValueError`: `softmax` has another name, such as `"exact"`, which is PyTorch's own.
    """
    if softmax not in UNNORMALIZED:
        raise SecureRouterValueError(
            f"`softmax` should be one of {', '.join(UNNORMALIZED)}, got {softmax!r}: call `torch.softmax` for the "
            "exact one."
        )
    unnormalized = UNNORMALIZED[softmax](scores.to(torch.promote_types(scores.dtype, torch.float32)))
    if is_token is not None:
        unnormalized = unnormalized * is_token
    return (unnormalized / unnormalized.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_ROW_SUM)).to(scores.dtype)


def _fixed_point_attention(softmax: str, precision: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """An attention function for transformers' interface that, in training, truncates as shares do."""
    bits, least = number_format(precision, softmax).bits, 2.0 ** number_format(precision, softmax).bounds.row_sum

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length, chosen = key.shape[-2], number_format(precision, softmax, position_bias is not None)
        scores = _scores(query, key, scaling, position_bias)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        half, apart = 2.0 ** (chosen.bounds.scores - 1), widest_distance(chosen.bounds, position_bias is not None)
        is_token = torch.ones_like(scores, dtype=torch.bool) if attention_mask is None else attention_mask
        watch(scores + 5 if softmax == "2quad" else scores, half, pairs=True)
        scores = truncated(scores, bits.scores, module.training)
        if softmax == "exact":
            below = scores.masked_fill(~is_token, -torch.inf).amax(-1, keepdim=True) - scores
            watch(below, apart, pairs=True)
            unnormalized = torch.exp(-below) * is_token
        else:
            unnormalized = UNNORMALIZED[softmax](scores) * is_token
        sums = unnormalized.sum(dim=-1, keepdim=True)
        if softmax != "exact":
            watch((1 / sums.clamp(min=least / 8)).transpose(1, 2), 1 / least)
        sums = sums.clamp(min=least)
        kept_bits = chosen.unnormalized(softmax, length)
        kept = functional.dropout(truncated(unnormalized, kept_bits, module.training), dropout, module.training)
        context = kept.to(value.dtype) @ value
        watch(context.transpose(1, 2), 2.0 ** chosen.context_bound(softmax, length))
        context = (truncated(context, kept_bits, module.training) / sums).to(value.dtype)
        return context.transpose(1, 2).contiguous(), (unnormalized / sums).to(value.dtype)

    return attend


def _scores(
    query: torch.Tensor, key: torch.Tensor, scaling: float | None, position_bias: torch.Tensor | None
) -> torch.Tensor:
    """Attention scores (B, heads, T, T), scaled, with the relative attention bias where there is one."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return scores if position_bias is None else scores + position_bias


def _attention(softmax: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """An attention function for transformers' interface."""

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = attention_weights(_scores(query, key, scaling, position_bias), attention_mask, softmax)
        weights = functional.dropout(weights, p=dropout, training=module.training)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    return attend


_ATTENTIONS = {(softmax, "full"): _attention(softmax) for softmax in UNNORMALIZED}
_ATTENTIONS |= {
    (softmax, "reduced"): _fixed_point_attention(softmax, "reduced") for softmax in ("exact", *UNNORMALIZED)
}
for _names, _function in _ATTENTIONS.items():
    AttentionInterface.register(_PREFIX + "_".join(_names), _function)
    AttentionMaskInterface.register(_PREFIX + "_".join(_names), sdpa_mask)  # True where a key counts


def use_functions(
    expert: PreTrainedModel, hidden_act: str = "exact", softmax: str = "exact", precision: str = "full"
) -> None:
    """Change the functions of a classifier, in place; its weights stay. `to_mpc` converts it with these functions.

    Args:
        expert (`PreTrainedModel`): A BERT-like classifier.
        hidden_act (`str`): Feed-forward activation: `"exact"` (the config's own), `"quadratic"` or `"relu"`.
        softmax (`str`): Attention: `"exact"`, `"2quad"` or `"2relu"`.
        precision (`str`): Number format: `"full"` or `"reduced"`; see `fixed_point_layers.py`.

    Raises:
        `SecureRouterValueError`: A function or precision is unknown, the family has no reduced precision, its
            attention is written into its layers, as DeBERTa's is, or its activation cannot be replaced, as
            ModernBERT's.
    """
    precision = current_precision(precision)
    chosen = {"hidden_act": hidden_act, "softmax": softmax, "precision": precision}
    for name, value in chosen.items():
        if value not in EXPERT_MPC_CHOICES[name]:
            options = ", ".join(EXPERT_MPC_CHOICES[name])
            raise SecureRouterValueError(f"`{name}` should be one of {options}, got {value!r}.")
    slots = list(activation_slots(expert.base_model)) if hidden_act != "exact" else []
    if hidden_act != "exact" and not slots:
        raise SecureRouterValueError(
            f"`hidden_act` {hidden_act!r} is not there for experts of {expert.config.model_type!r}, whose activation "
            "cannot be replaced: leave it at 'exact'."
        )
    if precision != "full":
        use_fixed_point(expert, precision, softmax, hidden_act)
    if (softmax, precision) in _ATTENTIONS:
        if expert.config.model_type == "mpnet":
            replace_attention(expert, _ATTENTIONS[softmax, precision])
        elif not expert._supports_attention_backend:
            raise SecureRouterValueError(
                f"`softmax` {softmax!r} is not there for experts of {expert.config.model_type!r}, whose attention "
                "cannot be replaced: leave it at 'exact'."
            )
        else:
            expert.set_attn_implementation(f"{_PREFIX}{softmax}_{precision}")
    cast(Any, expert).expert_mpc = chosen  # for `to_mpc`
    for module, name in slots:
        delattr(module, name)  # a module cannot be set over an attribute that is a function
        setattr(module, name, ACTIVATIONS[hidden_act]())
