# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A cascade of two stages, the baseline of routers: the costliest expert answers where the cheapest is not sure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.recipes.tasks import Task
from hf_securerouter.routing import by_cost


NEVER = -1e6  # the score of an expert that no price makes worth its cost


@refuses_unknown
def cascade_scores(task: Task, logits: torch.Tensor, costs: Sequence[float]) -> torch.Tensor:
    """
    A cascade as a router's outputs: nothing of it is trained, and it reads nothing but the cheapest expert's answer.

    Args:
        task ([`Task`]): The task.
        logits (`torch.Tensor` of shape (N, K, C)): Answers of the experts; only those of the cheapest are read.
        costs (K positive numbers): Cost of each expert.

    Returns:
        `torch.Tensor` of shape (N, K), float64: The cheapest expert's probability of its class, 1 for the costliest
        expert, and [`NEVER`] for those between. A regression has no probability: there it is the distance of the value
        from the mean, over the largest one, since values at the ends of a scale are the surer ones.
    """
    order = by_cost(costs)
    own = logits[:, order[0]].double()
    if task.regression:
        distance = (own[:, 0] - own[:, 0].mean()).abs()
        sure = distance / distance.max().clamp(min=1e-6)
    else:
        sure = own.softmax(dim=-1).amax(dim=-1)
    scores = torch.full(logits.shape[:2], NEVER, dtype=torch.float64)
    scores[:, order[-1]] = 1.0
    scores[:, order[0]] = sure
    return scores
