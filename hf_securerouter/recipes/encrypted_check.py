# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Validation rows under encryption: are the answers those of the clear model?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.artifacts import Countdown
from hf_securerouter.recipes.fitting import Collate, Row
from hf_securerouter.recipes.prediction import decide
from hf_securerouter.recipes.tasks import Task
from hf_securerouter.routing import serve_by_quota


NOISE, REDUCED_NOISE = 0.02, 0.5  # how far encrypted logits may be from clear ones, in full and in reduced precision


@refuses_unknown
def encrypted_logits(
    pool: SecureRouterForSequenceClassification,
    quotas: Sequence[int],
    rows: Sequence[Row],
    collate: Collate,
    max_length: int,
) -> torch.Tensor:
    """
    The answers of a pool on secret shares under `quota`.

    Args:
        pool (`SecureRouterForSequenceClassification`): The pool, on the CPU.
        quotas (K integers): Queries of a batch that each expert serves.
        rows (sequence of `dict`): N tokenized rows.
        collate (callable): Rows as one padded batch.
        max_length (`int`): Tokens that every input is padded to.

    Returns:
        `torch.Tensor` of shape (N, C): Logits, in the order of the rows.
    """
    secure = pool.to_mpc(routing_privacy="quota", quotas=list(quotas), max_length=max_length)
    batch = collate(list(rows))
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    countdown = Countdown(len(rows), "rows")
    with secure.local_session() as session:
        return session(inputs, progress=lambda done, _: countdown(done)).logits


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
        `dict`: `inputs`; `labels_equal`, None for a regression; `served_elsewhere`, how many inputs another expert
        answered than in clear, which happens where the router's scores of two experts are nearly equal;
        `largest_error` of a logit against the expert that answered; and the metrics of both, `metrics` and
        `clear_metrics`.
    """
    served = serve_by_quota(scores, quotas, costs)
    everyone = torch.arange(len(served))
    answers, clear = decide(task, found), decide(task, logits[everyone, served])
    errors = (found[:, None] - logits).abs().amax(dim=2)
    nearest, own = errors.min(dim=1).values, errors[everyone, served]
    metric = task.metric()
    return {
        "inputs": len(found),
        "labels_equal": None if task.regression else int((answers == clear).sum()),
        "served_elsewhere": int((own > nearest + (REDUCED_NOISE if reduced else NOISE)).sum()),
        "largest_error": float(nearest.max()),
        "metrics": metric(answers, labels.numpy()),
        "clear_metrics": metric(clear, labels.numpy()),
    }
