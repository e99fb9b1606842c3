# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Heads whose attention scores come closer to their bounds than the margin allows, scaled down.

The range penalty is a mean over tokens, which the few rows of a long tail hardly change. A score is a product with the
head's queries, so that smaller queries bring the whole tail within the bounds at once. The head's attention becomes a
little flatter, which matters little where scores differ by much. A relative attention bias, which all layers share,
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_securerouter.families import layers_of
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.mpnet_attention import relative_bias
from hf_securerouter.number_format import MARGIN, number_format, widest_distance


@refuses_unknown
@torch.no_grad()
def measure_scores(
    expert: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], share: float = 1.0
) -> torch.Tensor:
    """
    How much of their bounds the scores of each head take on some batches: the scores themselves, and their distance to
    the largest score of their row.

    Args:
        expert (`PreTrainedModel`): A classifier of one of `FOLDED_FAMILIES`, of reduced precision, with exact softmax.
        batches (iterable of `Mapping`): Inputs of shape (B, T) on the expert's device, with `attention_mask`.
        share (`float`): What products of queries and keys are multiplied by first; with 0 only a relative attention
            bias is left.

    Returns:
        `torch.Tensor` of shape (layers, heads): The largest value over its bound.
    """
    functions: dict[str, str] = expert.expert_mpc  # type: ignore[assignment]
    layers, heads = layers_of(expert), int(expert.config.num_attention_heads or 0)
    found, training = torch.zeros(len(layers), heads, device=expert.device), expert.training
    rows: dict[tuple[int, int], torch.Tensor] = {}

    def keep(name: tuple[int, int]) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            rows[name] = output.unflatten(-1, (heads, -1)).transpose(1, 2)

        return hook

    parts = [(index, part) for index in range(len(layers)) for part in range(2)]  # queries and keys
    hooks = [layers[index][part].register_forward_hook(keep((index, part))) for index, part in parts]
    try:
        for batch in batches:
            expert.eval()(**batch)
            is_token = batch["attention_mask"].bool()[:, None]
            pairs = is_token[..., None, :] & is_token[..., None]
            bias = relative_bias(expert, batch["input_ids"])
            bounds = number_format(functions["precision"], padding_differs=bias is not None).bounds
            half, apart = 2.0 ** (bounds.scores - 1), widest_distance(bounds, bias is not None)
            for index in range(len(layers)):
                query, key = rows[index, 0], rows[index, 1]
                scores = query @ key.transpose(-1, -2) * (share * query.shape[-1] ** -0.5)
                scores = (scores if bias is None else scores + bias).float().masked_fill(~pairs, 0)
                below = (scores.masked_fill(~pairs, -torch.inf).amax(-1, keepdim=True) - scores).masked_fill(~pairs, 0)
                needs = torch.maximum(scores.abs() / half, below / apart).amax((0, 2, 3))
                found[index] = torch.maximum(found[index], needs)
    finally:
        for hook in hooks:
            hook.remove()
        expert.train(training)
    return found


@refuses_unknown
def scale_down_queries(expert: PreTrainedModel, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """
    Scales queries, in the place, so that no score takes more of its bound than the margin leaves on these batches.

    Args:
        expert (`PreTrainedModel`): As for [`measure_scores`].
        batches (sequence of `Mapping`): As for [`measure_scores`].
    """
    needs, of_bias = measure_scores(expert, batches), measure_scores(expert, batches, share=0.0)
    # A largest absolute value is convex in the share of the products, so the line between both lies above it.
    factors = ((1 / MARGIN - of_bias) / (needs - of_bias)).clamp(0, 1).where(needs > 1 / MARGIN, 1.0)
    for factor, (query, *_) in zip(factors, layers_of(expert), strict=True):
        for parameter in (query.weight, query.bias):
            parameter.data.unflatten(0, (len(factor), -1)).mul_(factor.view(-1, *[1] * parameter.dim()))
