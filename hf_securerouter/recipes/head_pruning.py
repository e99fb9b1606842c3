# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
A classifier with fewer attention heads and fewer feed-forward neurons, as the start of one that is distilled.

On shares every score of every head is opened several times, so that heads cost more there than in clear text. Width
and depth stay the same, so that layers can still be compared one by one. A head that is kept becomes wider: it keeps
its own queries, keys and values, and takes over values of the removed heads whose attention is most like its own. The
result is a plain model of its family, whose config states the number of heads and neurons. Where all layers share a
relative attention bias, which has a column for each head, all of them keep the same heads.

Reference:
    Michel, Levy, Neubig, Are Sixteen Heads Really Better than One?, NeurIPS 2019, equation 2 (importance by the
    gradient of a mask).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.families import FOLDED_FAMILIES, LayerParts, family_of, layers_of
from hf_securerouter.known_arguments import refuses_unknown


FRESH = 0.02  # standard deviation of new weights, as in BERT
_BIAS = "mpnet.encoder.relative_attention_bias.weight"  # (buckets, heads)

Importance = list[dict[str, torch.Tensor]]  # of each layer


def pruned_shape(config: PreTrainedConfig, heads: float, neurons: float) -> tuple[int, int]:
    """
    Heads and neurons of a pruned layer, at least one of each. The number of heads divides the width.

    Args:
        config (`PreTrainedConfig`): Of the whole model.
        heads (`float`), neurons (`float`): Shares that are kept, at most.
    """
    inner = getattr(config, family_of(config).inner_field)
    most, width = int(config.num_attention_heads * heads), config.hidden_size
    return max(count for count in range(1, max(most, 1) + 1) if width % count == 0), max(int(inner * neurons), 1)


@refuses_unknown
def measure_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> Importance:
    """
    How much the loss of a classifier depends on each head and each neuron, to first order, on labelled batches.

    Args:
        model (`PreTrainedModel`): A classifier of one of `FOLDED_FAMILIES` with exact functions, whose attention
            implementation returns attention weights.
        batches (iterable of `Mapping`): Inputs of shape (B, T), with `attention_mask` and `labels`.

    Returns:
        list of one `dict` a layer, on the CPU: `heads` (heads,) and `neurons` (inner,), means over tokens of
        |activation times gradient|; and `likeness` (heads, heads), minus the mean distance of two heads' attention.

    Raises:
        `SecureRouterValueError`: The classifier is of another family.
    """
    if model.config.model_type not in FOLDED_FAMILIES:
        raise SecureRouterValueError(
            f"`slim` is there for experts of {', '.join(FOLDED_FAMILIES)}, got {model.config.model_type!r}: leave it "
            "out."
        )
    layers, heads = layers_of(model), int(model.config.num_attention_heads or 0)
    found = [dict.fromkeys(("heads", "neurons", "likeness"), torch.zeros(())) for _ in layers]
    kept: dict[tuple[int, str], torch.Tensor] = {}

    def keep(name: tuple[int, str]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            kept[name] = inputs[0]
            inputs[0].retain_grad()

        return hook

    hooks = []
    for index, layer in enumerate(layers):
        for name, module in (("heads", layer.attention_output), ("neurons", layer.output)):
            hooks.append(module.register_forward_pre_hook(keep((index, name))))
    try:
        for batch in batches:
            output = model.eval()(**batch, output_attentions=True)
            output.loss.backward()
            is_token = batch["attention_mask"].bool()
            for (index, name), values in kept.items():
                assert values.grad is not None
                effect = values.detach() * values.grad
                if name == "heads":
                    effect = effect.unflatten(-1, (heads, -1)).sum(-1)
                found[index][name] = found[index][name] + effect[is_token].abs().mean(0).cpu()
            for index, attention in enumerate(output.attentions):
                rows = attention.detach().transpose(1, 2)[is_token]  # tokens, heads, keys
                found[index]["likeness"] = found[index]["likeness"] - torch.cdist(rows, rows, p=1).mean(0).cpu()
            model.zero_grad(set_to_none=True)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@refuses_unknown
@torch.no_grad()
def prune(model: PreTrainedModel, heads: int, neurons: int, importance: Importance) -> PreTrainedModel:
    """
    A copy of a classifier with fewer heads and neurons in each layer.

    Args:
        model (`PreTrainedModel`): A classifier of one of `FOLDED_FAMILIES`.
        heads (`int`): Heads of a layer that are kept; a divisor of the width.
        neurons (`int`): Feed-forward neurons of a layer that are kept.
        importance (`list`): Of [`measure_importance`]; the most important parts are kept.

    Raises:
        `SecureRouterValueError`: `heads` does not divide the width, or is more than the classifier has.
    """
    width, most = int(model.config.hidden_size or 0), int(model.config.num_attention_heads or 0)
    if not 1 <= heads <= most or width % heads:
        raise SecureRouterValueError(f"`heads` should be a divisor of {width} up to {most}, got {heads}.")
    config = copy.deepcopy(model.config)
    config.num_attention_heads = heads
    setattr(config, family_of(config).inner_field, neurons)
    small = type(model)._from_config(config, dtype=model.dtype)
    layers, fresh = layers_of(model), layers_of(small)
    reshaped = {id(part) for layer in fresh for part in (*layer[:4], *layer[5:7])}
    weights = model.state_dict()
    of_heads = [matters["heads"] for matters in importance]
    if _BIAS in weights:
        of_heads = [torch.stack([one / one.sum().clamp(min=1e-30) for one in of_heads]).sum(0)] * len(layers)
    kept_heads = [one.topk(heads).indices.sort().values.tolist() for one in of_heads]
    for name, module in small.named_modules():
        if id(module) not in reshaped:
            for part, parameter in module.named_parameters(recurse=False):
                whole = weights[f"{name}.{part}"]
                parameter.copy_(whole[:, kept_heads[0]] if f"{name}.{part}" == _BIAS else whole)
    for old, new, kept_here, matters in zip(layers, fresh, kept_heads, importance, strict=True):
        _prune_attention(old, new, most, kept_here, matters["likeness"])
        kept = matters["neurons"].topk(neurons).indices.sort().values
        _copy_parts(old.intermediate, new.intermediate, rows=kept)
        _copy_parts(old.output, new.output, columns=kept)
    return small.eval()


Indices = list[int] | torch.Tensor | slice


def _copy_parts(old: nn.Linear, new: nn.Linear, rows: Indices = slice(None), columns: Indices = slice(None)) -> None:
    new.weight.copy_(old.weight[rows][:, columns])
    new.bias.copy_(old.bias[rows])


def _prune_attention(old: LayerParts, new: LayerParts, most: int, kept: Sequence[int], likeness: torch.Tensor) -> None:
    width = old.query.weight.shape[0]
    size, wider = width // most, width // len(kept)
    # Scores are divided by the root of a head's size, which grows.
    for own, grown, factor in ((old.query, new.query, math.sqrt(wider / size)), (old.key, new.key, 1.0)):
        grown.weight.normal_(std=FRESH)  # the rows by which a head becomes wider
        grown.bias.zero_()
        for place, head in enumerate(kept):
            here, there = slice(place * wider, place * wider + size), slice(head * size, (head + 1) * size)
            grown.weight[here] = factor * own.weight[there]
            grown.bias[here] = factor * own.bias[there]
    columns = _values_of(kept, most, size, wider, likeness)
    _copy_parts(old.value, new.value, rows=columns)
    _copy_parts(old.attention_output, new.attention_output, columns=columns)


def _values_of(kept: Sequence[int], most: int, size: int, wider: int, likeness: torch.Tensor) -> list[int]:
    """Which columns of the old values the new heads hold: their own, then those of removed heads, the most similar
    pairs first."""
    own = [list(range(head * size, (head + 1) * size)) for head in range(most)]
    held = [own[head] for head in kept]
    pairs = [(place, head) for place in range(len(kept)) for head in range(most) if head not in kept]
    for place, head in sorted(pairs, key=lambda pair: -float(likeness[kept[pair[0]], pair[1]])):
        free = wider - len(held[place])
        held[place], own[head] = held[place] + own[head][:free], own[head][free:]
    return [column for columns in held for column in columns]
