# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Heads whose attention scores come closer to their bounds than the margin allows, scaled down.

The range penalty is a mean over tokens, which the few rows of a long tail hardly change. A score is a product with the
head's queries, so that smaller queries bring the whole tail within the bounds at once. The head's attention becomes a
little flatter, which matters little where scores differ by much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_securerouter.families import layers_of
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.number_format import MARGIN, number_format


@refuses_unknown
@torch.no_grad()
def measure_scores(expert: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """
    How much of their bounds the scores of each head take on some batches: the scores themselves, and their distance to
    the largest score of their row.

    Args:
        expert (`PreTrainedModel`): A classifier of BERT, DistilBERT or RoBERTa, of reduced precision, with exact
            softmax.
        batches (iterable of `Mapping`): Inputs of shape (B, T) on the expert's device, with `attention_mask`.

    Returns:
        `torch.Tensor` of shape (layers, heads): The largest value over its bound.
    """
    functions: dict[str, str] = expert.expert_mpc  # type: ignore[assignment]
    half = 2.0 ** (number_format(functions["precision"]).bounds.scores - 1)
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
            for index in range(len(layers)):
                query, key = rows[index, 0], rows[index, 1]
                scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).float().masked_fill(~pairs, 0)
                below = (scores.masked_fill(~pairs, -torch.inf).amax(-1, keepdim=True) - scores).masked_fill(~pairs, 0)
                needs = torch.maximum(scores.abs() / half, below / (half - 4)).amax((0, 2, 3))
                found[index] = torch.maximum(found[index], needs)
    finally:
        for hook in hooks:
            hook.remove()
        expert.train(training)
    return found


@refuses_unknown
def scale_down_queries(expert: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """
    Scales queries, in the place, so that no score takes more of its bound than the margin leaves on these batches.

    Args:
        expert (`PreTrainedModel`): As for [`measure_scores`].
        batches (iterable of `Mapping`): As for [`measure_scores`].
    """
    factors = (1 / MARGIN / measure_scores(expert, batches)).clamp(max=1)
    for factor, (query, *_) in zip(factors, layers_of(expert), strict=True):
        for parameter in (query.weight, query.bias):
            parameter.data.unflatten(0, (len(factor), -1)).mul_(factor.view(-1, *[1] * parameter.dim()))
