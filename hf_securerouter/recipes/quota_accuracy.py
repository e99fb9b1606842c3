# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What quotas cost in accuracy, by the size of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_securerouter.classification import DEMO_CHECKPOINT
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown, refuses_unknown_init
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.arguments import DataArguments, option
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.fitting import Collate, Row
from hf_securerouter.recipes.prediction import predict
from hf_securerouter.routing import choose_expert, quotas_for_shares, serve_by_quota


@refuses_unknown_init
@dataclass
class QuotaArguments(DataArguments):
    """The pool, and how batches are drawn."""

    model: str = option(str(DEMO_CHECKPOINT), "Folder or name of a pool with quotas; default: the embedded one.")
    batch_sizes: list[int] = option([6, 8, 16, 32, 64, 128], "Queries of a batch.")
    shuffles: int = option(20, "Random ways to cut the rows into batches.")
    seed: int = option(42, "Of these shuffles.")


def quota_shares(model: SecureRouterForSequenceClassification) -> list[float]:
    """
    The share of a batch that each expert serves under a pool's quotas.

    Raises:
        `SecureRouterValueError`: The pool has no quotas, or its labels are numbers, of which none is right or wrong.
    """
    if model.config.problem_type == "regression":
        raise SecureRouterValueError(
            "`model` is a regression, whose answers are neither right nor wrong: its report has the score by quotas."
        )
    quotas = model.config.quotas
    if quotas is None:
        raise SecureRouterValueError(
            "`quotas` should be set in the config of the pool, got None: tune it for a budget."
        )
    return [quota / sum(quotas) for quota in quotas]


def answers(
    model: SecureRouterForSequenceClassification, rows: Sequence[Row], collate: Collate
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The router's outputs and the experts' classes.

    Args:
        model (`SecureRouterForSequenceClassification`): A pool of classifiers.
        rows (sequence of `dict`): N tokenized rows.
        collate (callable): Rows as one padded batch.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Scores and class ids, of shape (N, K) each.
    """
    scores = predict(model, rows, collate, ("router_logits",))[0]
    experts: Any = model.experts
    classes = [
        predict(expert, shortened(rows, model.config.length_of(index), expert.config), collate)[0].argmax(dim=1)
        for index, expert in enumerate(experts)
    ]
    return scores, torch.stack(classes, dim=1)


@refuses_unknown
def quota_accuracies(
    scores: torch.Tensor,
    right: torch.Tensor,
    costs: Sequence[float],
    routing_lambda: float,
    shares: Sequence[float],
    batch_sizes: Sequence[int],
    shuffles: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """
    Accuracy and mean cost without quotas, of each expert alone, and with quotas for each size of a batch: rows are cut
    into batches at random, several times, and every batch is served in the same shares.

    Args:
        scores (`torch.Tensor` of shape (N, K)): The router's outputs.
        right (`torch.Tensor` of shape (N, K), bool): Whether each expert's answer is right.
        costs (K numbers): Cost of each expert.
        routing_lambda (`float`): What a unit of cost weighs without quotas.
        shares (K numbers): Shares of the quotas, which are rounded to a batch.
        batch_sizes (sequence of `int`): Queries of a batch.
        shuffles (`int`): Random orders of the rows.
        seed (`int`): Of these orders.

    Yields:
        `dict`: `batch`, `accuracy` and `cost`; of a batch also `quotas`.
    """
    prices = torch.tensor(costs)

    def outcome(name: str | int, chosen: torch.Tensor, rows: torch.Tensor) -> dict[str, Any]:
        accuracy = right[rows].gather(1, chosen[:, None]).double().mean().item()
        return {"batch": name, "accuracy": round(accuracy, 4), "cost": round(prices[chosen].mean().item(), 4)}

    everyone = torch.arange(len(scores))
    yield outcome("unconstrained", choose_expert(scores, costs, routing_lambda), everyone)
    for expert in range(len(costs)):
        yield outcome(f"expert {expert} alone", torch.full_like(everyone, expert), everyone)
    generator = torch.Generator().manual_seed(seed)
    for size in batch_sizes:
        quotas = quotas_for_shares(shares, size)
        orders = [torch.randperm(len(scores), generator=generator) for _ in range(shuffles)]
        chosen = torch.cat([serve_by_quota(scores[order], quotas, costs) for order in orders])
        yield outcome(size, chosen, torch.cat(orders)) | {"quotas": quotas}
