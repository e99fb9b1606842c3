# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The tensors of a model that are shared, by canonical name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...number_format import Bounds
from ..models.architecture import copy_linear
from ..models.manifest import Manifest
from .description import Member


HIGHEST_PRICE = 2.0 ** (Bounds.logits + 1)  # largest lambda * cost of an expert: no two scores differ by more


def shared_weights(
    model: Any, members: Sequence[Member], manifest: Manifest, routing_lambda: float | None
) -> dict[str, Tensor]:
    """Every tensor that is shared.

    Args:
        model (`SecureRouterForSequenceClassification` or `PreTrainedModel`): The model.
        members (`Sequence[Member]`): From `describe`.
        manifest (`Manifest`): From `make_manifest`.
        routing_lambda (`float`, *optional*): Weight of a unit of cost in the decision; defaults to the config's.

    Returns:
        `dict[str, torch.Tensor]`: Float32 by member and canonical name, such as `experts.0.layers.1.query.weight`;
        matrices as (out, in).
    """
    weights = {} if manifest.router is None else _router_head(model, manifest, routing_lambda)
    for member in members:
        own = member.known
        named = own.encoder_weights(member.module) if member.name == "router" else own.weights(member.module)
        weights |= {f"{member.name}.{name}": values for name, values in named.items()}
    return weights


def _router_head(model: Any, manifest: Manifest, routing_lambda: float | None) -> dict[str, Tensor]:
    """The router's perceptron, with the routing policy folded into its last layer."""
    named: dict[str, Tensor] = {}
    for part in ("dense", "out_proj"):
        copy_linear(named, f"router.router.{part}", getattr(model.router, part))
    last = "router.router.out_proj"
    if manifest.batch is not None:
        for part in ("weight", "bias"):
            scores = named[f"{last}.{part}"]
            costliest, cheapest = manifest.hardest_first[0], manifest.hardest_first[-1]
            named[f"{last}.{part}"] = (scores[costliest] - scores[cheapest])[None]
    else:
        # The decision is argmax(score - lambda * cost), so lambda * cost is subtracted from the bias.
        price = model.config.routing_lambda if routing_lambda is None else routing_lambda
        costs = torch.tensor(model.config.expert_costs, dtype=torch.float32)
        # Scores are bounded: an expert that this price rules out is ruled out by any higher one.
        named[f"{last}.bias"] -= ((costs - costs.min()) * price).clamp(max=HIGHEST_PRICE)
    return named
