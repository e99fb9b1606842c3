# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Policies: from the router's outputs to the expert that serves each query.

A score is the router's prediction for an expert (`router_logits`, higher is better), a cost is the expert's cost of a
query (`expert_costs`). Shapes: B queries, K experts.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from .errors import SecureRouterValueError


_ROUNDING = 0.01  # what shares that were rounded, as those of a card are, may sum to beside 1


def choose_expert(scores: torch.Tensor, costs: Sequence[float] | torch.Tensor, routing_lambda: float) -> torch.Tensor:
    """The expert with the best score - lambda * cost; of equal experts the first.

    Args:
        scores (`torch.Tensor` of shape (B, K)): Router's outputs.
        costs (K positive numbers): Cost of each expert.
        routing_lambda (`float`): Weight of one unit of cost.

    Returns:
        `torch.Tensor` of shape (B,), int64.
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    prices = routing_lambda * torch.as_tensor(costs, dtype=scores.dtype, device=scores.device)
    return torch.argmax(scores - prices, dim=-1)


def take_chosen(expert_logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Of all experts' outputs, (B, K, C), those of each query's chosen expert, (B,) indices; (B, C)."""
    return expert_logits[torch.arange(len(chosen), device=chosen.device), chosen]


def lambda_for_budget(scores: torch.Tensor, costs: Sequence[float], budget: float) -> float:
    """The smallest lambda with which queries cost at most `budget` on average under [`choose_expert`].

    The mean cost never rises with lambda, and changes only where an expert's lead over a cheaper expert is used up.
    The candidates are one lambda between every two such points; bisection finds the lowest that keeps the budget.

    Args:
        scores (`torch.Tensor` of shape (B, K)): Router's outputs for held-out queries.
        costs (K positive numbers): Cost of each expert.
        budget (`float`): Mean cost of a query, in the units of `costs`.

    Returns:
        `float`: lambda, at least 0.

    Raises:
        `SecureRouterValueError`: The cheapest expert alone costs more than `budget`, or the number of `costs` is not
            K.
    """
    _check_costs(scores, costs)
    _check_budget(costs, budget)
    costs_tensor = torch.tensor(costs, dtype=torch.float64)
    scores = scores.detach().double().cpu()

    def mean_cost(routing_lambda: float) -> float:
        return costs_tensor[choose_expert(scores, costs_tensor, routing_lambda)].mean().item()

    most = budget * (1 + 1e-9)  # the mean of equal costs may differ from them in the last bit
    if mean_cost(0.0) <= most:
        return 0.0
    candidates = _decisive_lambdas(scores, costs_tensor)
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if mean_cost(candidates[middle].item()) <= most:
            high = middle
        else:
            low = middle + 1
    return candidates[low].item()


def _check_costs(scores: torch.Tensor, costs: Sequence[float]) -> None:
    if scores.dim() != 2 or len(costs) != scores.shape[1]:
        raise SecureRouterValueError(
            f"`costs` should have one entry for each expert, a column of `scores`, got {list(costs)} for scores of "
            f"the shape {tuple(scores.shape)}: pass both for the same experts."
        )


def _check_budget(costs: Sequence[float], budget: float) -> None:
    if budget < min(costs):
        raise SecureRouterValueError(
            f"`budget` should be at least {min(costs)}, the cost of the cheapest expert, got {budget!r}."
        )


def _decisive_lambdas(scores: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """One lambda between every two values at which a decision may change, and one beyond; ascending, float64."""
    gains = scores[:, :, None] - scores[:, None, :]
    steps = costs[:, None] - costs[None, :]
    crossings = (gains / steps)[:, steps > 0].flatten()
    crossings = torch.unique(crossings[crossings >= 0])
    return (crossings + torch.cat([crossings[1:], crossings[-1:] * 2 + 2])) / 2


def lambda_grid(scores: torch.Tensor, costs: Sequence[float], points: int = 101) -> list[float]:
    """Lambdas from 0, where every query gets its best expert, to one where every query gets the cheapest; about as
    many decisions change in every step.

    Args:
        scores (`torch.Tensor` of shape (B, K)): Router's outputs.
        costs (K positive numbers): Cost of each expert.
        points (`int`): Most lambdas to return, at least 2.

    Returns:
        `list[float]`: Ascending, from 0.

    Raises:
        `SecureRouterValueError`: The number of `costs` is not K.
    """
    _check_costs(scores, costs)
    candidates = _decisive_lambdas(scores.detach().double().cpu(), torch.tensor(costs, dtype=torch.float64))
    if len(candidates) >= points:
        candidates = candidates[torch.linspace(0, len(candidates) - 1, points - 1).round().long()]
    return [0.0, *candidates.tolist()]


def quotas_for_budget(scores: torch.Tensor, costs: Sequence[float], budget: float, batch_size: int) -> list[int]:
    """The quotas with the highest mean score among those with which queries cost at most `budget` on average, if they
    are served by [`assign_by_quota`].

    All quotas are tried; for a batch of 32 and five experts there are 58,905. Of equally good quotas the cheapest are
    taken.

    Args:
        scores (`torch.Tensor` of shape (B, K)): Router's outputs for held-out queries.
        costs (K positive numbers): Cost of each expert.
        budget (`float`): Mean cost of a query, in the units of `costs`.
        batch_size (`int`): The sum of the quotas.

    Returns:
        `list[int]`: K counts.

    Raises:
        `SecureRouterValueError`: The cheapest expert alone costs more than `budget`, the number of `costs` is not K,
            or `batch_size` is less than 1.
    """
    _check_costs(scores, costs)
    _check_budget(costs, budget)
    _check_size("batch_size", batch_size)
    queries, experts = scores.shape
    order = by_cost(costs)[::-1]  # the costliest serves the hardest queries
    scores = scores.detach().double().cpu()
    hardest_first = torch.argsort(scores[:, order[0]] - scores[:, order[-1]], descending=True, stable=True)
    served = scores[hardest_first][:, order].cumsum(dim=0)
    expected = torch.cat([torch.zeros(1, experts, dtype=torch.float64), served])  # of the first n queries, (B + 1, K)

    bars = torch.tensor(list(combinations(range(batch_size + experts - 1), experts - 1)), dtype=torch.int64)
    cuts = bars.view(-1, experts - 1) - torch.arange(experts - 1)
    ends = torch.cat([cuts, torch.full((len(cuts), 1), batch_size)], dim=1)
    starts = torch.cat([torch.zeros(len(cuts), 1, dtype=torch.int64), cuts], dim=1)
    mean_costs = (ends - starts).double() @ torch.tensor([costs[k] for k in order], dtype=torch.float64) / batch_size
    rows = [(bounds * queries / batch_size).round().long() for bounds in (starts, ends)]
    columns = torch.arange(experts)
    gains = (expected[rows[1], columns] - expected[rows[0], columns]).sum(dim=1) / max(1, queries)
    gains[mean_costs > budget * (1 + 1e-9)] = -torch.inf
    best = (gains >= gains.max() - 1e-9).nonzero().squeeze(1)
    chosen = best[mean_costs[best].argmin()]
    quotas = [0] * experts
    for k, count in zip(order, (ends - starts)[chosen].tolist(), strict=True):
        quotas[k] = count
    return quotas


def quotas_for_batch(quotas: Sequence[int], batch_size: int) -> list[int]:
    """How many of `batch_size` queries each expert serves: whole batches of the quotas, the last one padded.

    Args:
        quotas (K integers): Queries of one batch that each expert serves.
        batch_size (`int`): Number of queries, at least 1.

    Returns:
        `list[int]`: K counts, whose sum is the smallest multiple of `sum(quotas)` that holds all queries.

    Raises:
        `SecureRouterValueError`: The quotas are no counts or serve no query, or `batch_size` is less than 1.
    """
    check_quotas(quotas)
    _check_size("batch_size", batch_size)
    batches = -(-batch_size // sum(quotas))
    return [batches * quota for quota in quotas]


def check_quotas(quotas: Sequence[int]) -> None:
    """Refuses quotas by which no batch can be served.

    Raises:
        `SecureRouterValueError`: They are no list of integers, one is negative, or all are 0.
    """
    if not are_counts(quotas) or sum(quotas) < 1:
        raise SecureRouterValueError(
            f"`quotas` should be counts of queries, at least one of them above 0, got {quotas!r}: pass an integer for "
            "each expert."
        )


def are_counts(quotas: Any) -> bool:
    """Whether a value is a list, or another sequence, of integers of at least 0."""
    return isinstance(quotas, Sequence | np.ndarray) and all(
        isinstance(count, numbers.Integral) and not isinstance(count, bool) and int(count) >= 0 for count in quotas
    )


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise SecureRouterValueError(f"`{name}` should be at least 1, got {size}: pass the number of queries.")


def quotas_for_shares(shares: Sequence[float], batch_size: int) -> list[int]:
    """Quotas of a batch that are closest to given shares, by largest remainders; of equal remainders the first wins.

    Args:
        shares (K numbers): Fraction of all queries that each expert serves, such as the routing distribution on
            training data; the fractions sum to 1, but for their rounding.
        batch_size (`int`): The sum of the quotas.

    Returns:
        `list[int]`: K counts.

    Raises:
        `SecureRouterValueError`: A share is negative, they do not sum to 1, or `batch_size` is less than 1.
    """
    total = sum(shares)
    if min(shares, default=0) < 0 or not abs(total - 1) <= _ROUNDING:
        raise SecureRouterValueError(
            f"`shares` should be fractions that sum to 1, got {list(shares)}, which sum to {total:.4g}: divide each "
            "by their sum."
        )
    _check_size("batch_size", batch_size)
    exact = [share * batch_size / total for share in shares]
    quotas = [int(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda k: quotas[k] - exact[k])
    for k in order[: batch_size - sum(quotas)]:
        quotas[k] += 1
    return quotas


def by_cost(costs: Sequence[float]) -> list[int]:
    """The experts from the cheapest to the costliest; experts of equal cost stay in order."""
    return sorted(range(len(costs)), key=lambda k: costs[k])


def assign_by_quota(scores: torch.Tensor, quotas: Sequence[int], costs: Sequence[float]) -> torch.Tensor:
    """Serves a batch so that every expert gets exactly its quota, whatever the queries are.

    Queries are ranked by difficulty: the costliest expert's score minus the cheapest's. The hardest queries go to the
    costliest expert until its quota is full, the next to the next cheaper one, and so on. Of equally hard queries the
    first counts as the harder one.

    Args:
        scores (`torch.Tensor` of shape (B, K)): Router's outputs.
        quotas (K integers): How many queries each expert serves; their sum is B.
        costs (K positive numbers): Cost of each expert.

    Returns:
        `torch.Tensor` of shape (B,), int64.

    Raises:
        `SecureRouterValueError`: The quotas do not sum to B, or their number is not K.
    """
    batch, experts = scores.shape
    if len(quotas) != experts or len(costs) != experts or sum(quotas) != batch or min(quotas) < 0:
        raise SecureRouterValueError(
            f"`quotas` should be {experts} counts that sum to the {batch} queries, with as many `costs`, got "
            f"{list(quotas)} and {list(costs)}: pad the batch, or see `quotas_for_batch`."
        )
    order = by_cost(costs)
    difficulty = scores[:, order[-1]] - scores[:, order[0]]
    hardest_first = torch.argsort(difficulty, descending=True, stable=True)
    served_by = torch.tensor([k for k in reversed(order) for _ in range(quotas[k])], device=scores.device)
    assignment = torch.empty(batch, dtype=torch.int64, device=scores.device)
    assignment[hardest_first] = served_by
    return assignment


def fill_batch(count: int, size: int) -> torch.Tensor:
    """Fill a batch of `size` rows from `count` queries: the index of each query, then copies of them in turn.

    Returns:
        `torch.Tensor` of shape (size,), int64; the first `count` are 0, 1, 2, ...

    Raises:
        `SecureRouterValueError`: `count` or `size` is less than 1.
    """
    _check_size("count", count)
    _check_size("size", size)
    return torch.arange(size) % count


def serve_by_quota(scores: torch.Tensor, quotas: Sequence[int], costs: Sequence[float]) -> torch.Tensor:
    """Serves any number of queries, in their order and in batches of `sum(quotas)`, with [`assign_by_quota`].

    Args:
        scores (`torch.Tensor` of shape (B, K)): Router's outputs.
        quotas (K integers): Queries of one batch that each expert serves.
        costs (K positive numbers): Cost of each expert.

    Returns:
        `torch.Tensor` of shape (B,), int64. The last batch is filled up with copies of its queries, in turn.

    Raises:
        `SecureRouterValueError`: The quotas are no counts or serve no query, or their number is not K.
    """
    check_quotas(quotas)
    if len(scores) == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    size = sum(quotas)
    return torch.cat([
        assign_by_quota(part[fill_batch(len(part), size)], quotas, costs)[: len(part)] for part in scores.split(size)
    ])  # fmt: skip
