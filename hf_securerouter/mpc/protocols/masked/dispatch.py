# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the two ways of a mixture cost, and which is the cheaper one: exact, or with a capacity of the experts.

The two are different functions: with a capacity tokens may be dropped. So a model's config says which one it is, and
the planner chooses for a model that has not been trained for either, such as one that is measured.
"""

from __future__ import annotations

from dataclasses import replace

from ...models import EncoderSpec
from ...models.manifest import Manifest
from ...net.network_model import NETWORKS
from .memory import BatchCost, batch_cost


DISPATCHES = ("exact", "capacity")


def switch_capacity(length: int, experts: int, choices: int) -> int:
    """Places of an expert, if all of them together are as many as the choices of a text's tokens; at least one."""
    return -(-length * choices // experts)


def dispatch_costs(manifest: Manifest, batch: int = 1) -> dict[str, BatchCost]:
    """The planned cost of a batch in each way, from public shapes alone.

    Args:
        manifest (`Manifest`): Of one classifier with sparse layers.
        batch (`int`): Texts of the batch.
    """
    length = manifest.max_length

    def planned(spec: EncoderSpec, capacity: int | None) -> BatchCost:
        return batch_cost(replace(manifest, experts=(replace(spec, expert_capacity=capacity),)), batch)

    (spec,) = manifest.experts
    places = switch_capacity(length, spec.num_experts, spec.experts_per_token)
    return {"exact": planned(spec, None), "capacity": planned(spec, places)}


def cheaper_dispatch(costs: dict[str, BatchCost], network: str) -> str:
    """The way that takes less time on a network, by its rounds, its bytes and the dealer's.

    Args:
        costs (`dict[str, BatchCost]`): From `dispatch_costs`.
        network (`str`): A name in `NETWORKS`.
    """
    model = NETWORKS[network]
    return min(
        DISPATCHES,
        key=lambda name: model.seconds(
            costs[name].rounds, costs[name].online_bytes / 2, costs[name].dealer_bytes
        ),
    )  # fmt: skip
