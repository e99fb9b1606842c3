# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
A classifier with fewer attention heads and fewer feed-forward neurons, as a start for one that learns from it.

On shares every score of every head is opened several times, so heads cost more there than in clear. Width and depth
stay, and with them what layers can be taught by. A head that stays becomes wider: it keeps its own queries, keys and
values, and takes over values of heads that go, of those that look where it looks itself. The result is a plain model
of its family, whose config says how many heads and neurons it has.

Reference:
    Michel, Levy, Neubig, Are Sixteen Heads Really Better than One?, NeurIPS 2019, equation 2 (importance by the
    gradient of a mask).
"""

import copy
import math

import torch

from hf_securerouter import SecureRouterValueError
from hf_securerouter.families import FOLDED_FAMILIES, family_of, layers_of


FRESH = 0.02  # standard deviation of new weights, as in BERT


def pruned_shape(config, heads, neurons):
    """Heads and neurons of a layer when at most these shares of them stay; heads have to divide the width."""
    inner = getattr(config, family_of(config).inner_field)
    most = int(config.num_attention_heads * heads)
    return max(count for count in range(1, max(most, 1) + 1) if config.hidden_size % count == 0), int(inner * neurons)


def measure_importance(model, batches):
    """What an exact classifier loses by parts of its layers, to first order, on labelled batches.

    Args:
        model (`PreTrainedModel`): A classifier of BERT, DistilBERT or RoBERTa that gives its attention.
        batches (iterable of `dict`): Of inputs and labels.

    Returns:
        `list` of one dict a layer, on the CPU: `heads` (heads,) and `neurons` (inner,), means over tokens of
        |activation times gradient|, and `likeness` (heads, heads): minus the mean distance of two heads' attention.

    Raises:
        `SecureRouterValueError`: Of another family.
    """
    if model.config.model_type not in FOLDED_FAMILIES:
        raise SecureRouterValueError(
            f"`slim` is there for experts of {', '.join(FOLDED_FAMILIES)}, got {model.config.model_type!r}: leave it "
            "out."
        )
    layers, heads = layers_of(model), model.config.num_attention_heads
    found = [{"heads": 0.0, "neurons": 0.0, "likeness": 0.0} for _ in layers]
    kept = {}

    def keep(name):
        def hook(module, inputs):
            kept[name] = inputs[0]
            inputs[0].retain_grad()

        return hook

    hooks = []
    for index, layer in enumerate(layers):
        for name, module in (("heads", layer[3]), ("neurons", layer[6])):
            hooks.append(module.register_forward_pre_hook(keep((index, name))))
    try:
        for batch in batches:
            output = model.eval()(**batch, output_attentions=True)
            output.loss.backward()
            live = batch["attention_mask"].bool()
            for (index, name), values in kept.items():
                effect = values.detach() * values.grad
                if name == "heads":
                    effect = effect.unflatten(-1, (heads, -1)).sum(-1)
                found[index][name] = found[index][name] + effect[live].abs().mean(0).cpu()
            for index, attention in enumerate(output.attentions):
                rows = attention.detach().transpose(1, 2)[live]  # tokens, heads, keys
                found[index]["likeness"] = found[index]["likeness"] - torch.cdist(rows, rows, p=1).mean(0).cpu()
            model.zero_grad(set_to_none=True)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def prune(model, heads, neurons, importance):
    """A copy of a classifier with so many heads and neurons in each layer.

    Args:
        model (`PreTrainedModel`): A classifier of BERT, DistilBERT or RoBERTa.
        heads (`int`): A divisor of its width, no more than it has.
        neurons (`int`): No more than it has.
        importance (`list`): Of [`measure_importance`]; the parts that matter most stay.

    Raises:
        `SecureRouterValueError`: The classifier cannot have so many.
    """
    width, most = model.config.hidden_size, model.config.num_attention_heads
    if not 1 <= heads <= most or width % heads:
        raise SecureRouterValueError(f"`heads` should be a divisor of {width} up to {most}, got {heads}.")
    config = copy.deepcopy(model.config)
    config.num_attention_heads = heads
    setattr(config, family_of(config).inner_field, neurons)
    small = type(model)._from_config(config, dtype=model.dtype)
    layers, fresh = layers_of(model), layers_of(small)
    reshaped = {id(part) for layer in fresh for part in (*layer[:4], *layer[5:7])}
    weights = model.state_dict()
    for name, module in small.named_modules():
        if id(module) not in reshaped:
            for part, parameter in module.named_parameters(recurse=False):
                parameter.copy_(weights[f"{name}.{part}"])
    for old, new, matters in zip(layers, fresh, importance, strict=True):
        _prune_attention(old[:4], new[:4], most, heads, matters)
        stay = matters["neurons"].topk(neurons).indices.sort().values
        _copy_parts(old[5], new[5], rows=stay)
        _copy_parts(old[6], new[6], columns=stay)
    return small.eval()


def _copy_parts(old, new, rows=slice(None), columns=slice(None)):
    new.weight.copy_(old.weight[rows][:, columns])
    new.bias.copy_(old.bias[rows])


def _prune_attention(old, new, most, heads, matters):
    width = old[0].weight.shape[0]
    size, wider = width // most, width // heads
    stay = matters["heads"].topk(heads).indices.sort().values.tolist()
    # Scores are divided by the root of the size, which grows.
    for own, grown, factor in ((old[0], new[0], math.sqrt(wider / size)), (old[1], new[1], 1.0)):
        grown.weight.normal_(std=FRESH)  # what a head has beyond its own
        grown.bias.zero_()
        for place, head in enumerate(stay):
            here, there = slice(place * wider, place * wider + size), slice(head * size, (head + 1) * size)
            grown.weight[here] = factor * own.weight[there]
            grown.bias[here] = factor * own.bias[there]
    columns = _values_of(stay, most, size, wider, matters["likeness"])
    _copy_parts(old[2], new[2], rows=columns)
    _copy_parts(old[3], new[3], columns=columns)


def _values_of(stay, most, size, wider, likeness):
    """Which columns of the old values the new heads hold: their own, and those of others, the most alike first."""
    own = [list(range(head * size, (head + 1) * size)) for head in range(most)]
    held = [own[head] for head in stay]
    pairs = [(place, head) for place in range(len(stay)) for head in range(most) if head not in stay]
    for place, head in sorted(pairs, key=lambda pair: -float(likeness[stay[pair[0]], pair[1]])):
        room = wider - len(held[place])
        held[place], own[head] = held[place] + own[head][:room], own[head][room:]
    return [column for columns in held for column in columns]
