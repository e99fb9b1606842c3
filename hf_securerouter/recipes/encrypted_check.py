# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Validation rows under encryption: are the answers those of the clear model?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown, refuses_unknown_init
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.arguments import DataArguments, option
from hf_securerouter.recipes.artifacts import Countdown
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.fitting import Collate, Row
from hf_securerouter.recipes.prediction import decide, labels_of, predict
from hf_securerouter.recipes.tasks import Task
from hf_securerouter.routing import serve_by_quota


MARGIN = 0.05  # between the two largest logits, from which on rounding should not change a label
SAMPLES = 512  # training rows that set the bounds of every layer
NOISE, REDUCED_NOISE = 0.02, 0.5  # how far encrypted logits may be from clear ones, in full and in reduced precision


@refuses_unknown_init
@dataclass
class EncryptedArguments(DataArguments):
    """The pool, beside the rows."""

    router: str = option("", "Folder or name of a pool with quotas.")


@refuses_unknown
def encrypted_logits(
    pool: SecureRouterForSequenceClassification,
    quotas: Sequence[int],
    rows: Sequence[Row],
    collate: Collate,
    max_length: int,
    samples: Sequence[Row] = (),
) -> tuple[torch.Tensor, dict[str, float]]:
    """
    The answers of a pool on secret shares under `quota`, and what they cost.

    Args:
        pool (`SecureRouterForSequenceClassification`): The pool, on the CPU.
        quotas (K integers): Queries of a batch that each expert serves.
        rows (sequence of `dict`): N tokenized rows.
        collate (callable): Rows as one padded batch.
        max_length (`int`): Tokens that every input is padded to.
        samples (sequence of `dict`): Tokenized rows, such as the first [`SAMPLES`] training rows, that set the bounds
            of every layer; without them the built-in samples do.

    Returns:
        `tuple`: Logits (N, C), in the order of the rows; and what a query took, as measured over all of them:
        `seconds` online, `preprocess_seconds` before its input came, `bytes` between the servers and `dealer_bytes`;
        and `in_bounds`, how many inputs were in batches whose values all kept their bounds: the others' answers may
        be wrong. The guard that tells is part of the costs, a few percent.
    """
    own = shortened(samples, max_length, pool.config)  # no causal encoder is computed on shares
    calibration = _inputs(own, collate) if own else None
    secure = pool.to_mpc(
        routing_privacy="quota", quotas=list(quotas), max_length=max_length, calibration=calibration, guard=True
    )
    inputs = _inputs(rows, collate)
    countdown = Countdown(len(rows), "rows")
    with secure.local_session() as session:
        result = session(inputs, progress=lambda done, _: countdown(done))
    cost = result.cost
    totals = {"seconds": cost.online_seconds, "preprocess_seconds": cost.preprocess_seconds}
    totals |= {"bytes": cost.online_bytes, "dealer_bytes": cost.dealer_bytes}
    query: dict[str, float] = {name: total / len(rows) for name, total in totals.items()}
    return result.logits, query | {"in_bounds": sum(kept is True for kept in result.in_bounds)}


def _inputs(rows: Sequence[Row], collate: Collate) -> dict[str, torch.Tensor]:
    """Rows as one padded batch, without their labels."""
    batch = collate(list(rows))
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


@refuses_unknown
def compare_with_clear(
    task: Task,
    found: torch.Tensor,
    scores: torch.Tensor,
    logits: torch.Tensor,
    quotas: Sequence[int],
    costs: Sequence[float],
    labels: torch.Tensor,
    reduced: bool = False,
) -> dict[str, Any]:
    """
    How the encrypted answers differ from those of the clear model under the same policy.

    Args:
        task ([`Task`]): The task.
        found (`torch.Tensor` of shape (N, C)): Encrypted logits.
        scores (`torch.Tensor` of shape (N, K)): The router's outputs in clear.
        logits (`torch.Tensor` of shape (N, K, C)): The experts' logits in clear.
        quotas (K integers), costs (K numbers): The policy.
        labels (`torch.Tensor` of shape (N,)): The right answers.
        reduced (`bool`): Whether an expert has a reduced precision.

    Returns:
        `dict`: `inputs`; `labels_equal`; `sure`, how many clear answers have a margin above [`MARGIN`], and
        `sure_labels_equal` of these; all three None for a regression. `served_elsewhere`, how many inputs another
        expert answered than in clear, which happens where the router's scores of two experts are nearly equal, and
        `elsewhere_labels_changed`, how many of them have another label so, None for a regression; `largest_error` of a
        logit against the expert that answered; and the metrics of both, `metrics` and `clear_metrics`.
    """
    served = serve_by_quota(scores, quotas, costs)
    everyone = torch.arange(len(served))
    answers, clear = decide(task, found), decide(task, logits[everyone, served])
    errors = (found[:, None] - logits).abs().amax(dim=2)
    nearest, own = errors.min(dim=1).values, errors[everyone, served]
    metric = task.metric()
    sure, equal = np.zeros(len(found), dtype=bool), answers == clear
    if not task.regression:
        first, second = logits[everyone, served].topk(2, dim=1).values.unbind(dim=1)
        sure = (first - second > MARGIN).numpy()
    elsewhere = (own > nearest + (REDUCED_NOISE if reduced else NOISE)).numpy()
    return {
        "inputs": len(found),
        "labels_equal": None if task.regression else int(equal.sum()),
        "sure": None if task.regression else int(sure.sum()),
        "sure_labels_equal": None if task.regression else int(equal[sure].sum()),
        "served_elsewhere": int(elsewhere.sum()),
        "elsewhere_labels_changed": None if task.regression else int((~equal[elsewhere]).sum()),
        "largest_error": float(nearest.max()),
        "metrics": metric(answers, labels.numpy()),
        "clear_metrics": metric(clear, labels.numpy()),
    }


@refuses_unknown
def check_pool(
    task: Task,
    pool: SecureRouterForSequenceClassification,
    rows: Sequence[Row],
    collate: Collate,
    samples: Sequence[Row] = (),
) -> dict[str, Any]:
    """
    Classifies rows on secret shares and in clear text, by a pool that was saved with its quotas. Inputs are padded to
    the longest row, which is public here; a deployment pads them to the pool's `max_length`.

    Args:
        task ([`Task`]): The task.
        pool (`SecureRouterForSequenceClassification`): The pool, on the CPU, in evaluation mode.
        rows (sequence of `dict`): Tokenized rows with `labels`.
        collate (callable): Rows as one padded batch.
        samples (sequence of `dict`): As for [`encrypted_logits`].

    Returns:
        `dict`: As [`compare_with_clear`], and what a query took, as [`encrypted_logits`]; `length`, the tokens of
        its inputs.

    Raises:
        `SecureRouterValueError`: The pool has no quotas.
    """
    config, experts = pool.config, cast(Any, pool.experts)
    quotas = config.quotas
    if quotas is None:
        raise SecureRouterValueError(
            "`quotas` should be set in the config of the pool, got None: tune it for a budget."
        )
    scores = predict(pool, rows, collate, ("router_logits",))[0]
    answers = [
        predict(expert, shortened(rows, config.length_of(index), expert.config), collate)[0]
        for index, expert in enumerate(experts)
    ]
    length = min(max(len(row["input_ids"]) for row in rows), cast(int, config.max_length))
    found, query = encrypted_logits(pool, quotas, rows, collate, length, samples)
    reduced = any(own["precision"] != "full" for own in config.expert_mpc or ())
    policy = scores, torch.stack(answers, dim=1), quotas, cast(list[float], config.expert_costs)
    return compare_with_clear(task, found, *policy, labels_of(rows), reduced) | {"length": length} | query
