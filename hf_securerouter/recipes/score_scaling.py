# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Heads whose attention scores come nearer to their bounds than the margin allows, scaled down.

What fines such values is a mean over tokens, which the few rows of a long tail hardly move. A score is a product with
the head's queries, so that smaller queries bring all of the tail within the bounds at once. Attention becomes a little
flatter by it, which matters little where scores lie far apart.
"""

import torch

from hf_securerouter.families import layers_of
from hf_securerouter.number_format import MARGIN, number_format


@torch.no_grad()
def measure_scores(expert, batches):
    """How much of their bounds a head's scores need on some batches: themselves, and their distance to the largest of
    their row.

    Args:
        expert (`PreTrainedModel`): A classifier of BERT, DistilBERT or RoBERTa, of a narrow precision, with exact
            softmax.
        batches (iterable of `dict`): Of inputs, on its device.

    Returns:
        `torch.Tensor` of shape (layers, heads): the largest value over its bound.
    """
    half = 2.0 ** (number_format(expert.expert_mpc["precision"]).bounds.scores - 1)
    layers, heads = layers_of(expert), expert.config.num_attention_heads
    found, rows, training = torch.zeros(len(layers), heads, device=expert.device), {}, expert.training

    def keep(name):
        def hook(module, inputs, output):
            rows[name] = output.unflatten(-1, (heads, -1)).transpose(1, 2)

        return hook

    parts = [(index, part) for index in range(len(layers)) for part in range(2)]  # queries and keys
    hooks = [layers[index][part].register_forward_hook(keep((index, part))) for index, part in parts]
    try:
        for batch in batches:
            expert.eval()(**batch)
            live = batch["attention_mask"].bool()[:, None]
            pairs = live[..., None, :] & live[..., None]
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


def scale_down_queries(expert, batches):
    """Scales queries, in the place, so that no score needs more of its bounds than the margin leaves on these batches.

    Args:
        expert (`PreTrainedModel`), batches (iterable of `dict`): As in [`measure_scores`].
    """
    factors = (1 / MARGIN / measure_scores(expert, batches)).clamp(max=1)
    for factor, (query, *_) in zip(factors, layers_of(expert), strict=True):
        for parameter in (query.weight, query.bias):
            parameter.data.unflatten(0, (len(factor), -1)).mul_(factor.view(-1, *[1] * parameter.dim()))
