# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A router that is trained on the experts' cached answers; the experts themselves do not run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.losses import expert_utilities
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.artifacts import announce
from hf_securerouter.recipes.closed_form_router import fit_closed_form_router
from hf_securerouter.recipes.fitting import Collate, Row, Train
from hf_securerouter.recipes.prediction import Summary, labels_of, predict, to_device
from hf_securerouter.recipes.tasks import Task


def with_answers(rows: Sequence[Row], logits: torch.Tensor) -> list[Row]:
    """Rows with `expert_logits`, of logits (N, K, C)."""
    return [row | {"expert_logits": own.tolist()} for row, own in zip(rows, logits, strict=True)]


@refuses_unknown
def summarize_rows(
    model: SecureRouterForSequenceClassification, rows: Sequence[Row], collate: Collate
) -> Sequence[Row]:
    """
    Rows with the router's summary of each, where the router shares an expert's encoder: that encoder is frozen, so
    that a summary is computed once and cached.

    Args:
        model (`SecureRouterForSequenceClassification`): The pool.
        rows (sequence of `dict`): Tokenized rows.
        collate (callable): Rows as one padded batch.

    Returns:
        sequence of `dict`: With `router_summary`, H numbers; without a shared encoder the rows as they are.
    """
    if model.config.router_shares_expert is None:
        return rows
    (summaries,) = predict(to_device(Summary(model)), rows, collate, ("summary",))
    return [row | {"router_summary": own.tolist()} for row, own in zip(rows, summaries, strict=True)]


@refuses_unknown
def train_router(
    model: SecureRouterForSequenceClassification,
    rows: Sequence[Row],
    task: Task,
    collate: Collate,
    train: Train,
    epochs: float,
    learning_rate: float,
) -> dict[str, torch.Tensor]:
    """
    Trains the router of a pool in the place, and nothing else of it.

    Args:
        model (`SecureRouterForSequenceClassification`): The pool. With `router_objective="utility"` and a shared
            encoder the router is fitted in closed form.
        rows (sequence of `dict`): Tokenized rows with `labels` and `expert_logits` (K lists of C numbers), answers of
            experts that have not seen these rows.
        task ([`Task`]): The task.
        collate (callable): Rows as one padded batch.
        train (callable): Trains a model.
        epochs (`float`), learning_rate (`float`): Of the router.

    Returns:
        `dict`: The router's weights, on the CPU.
    """
    model.experts.requires_grad_(False)
    rows, objective = summarize_rows(model, rows, collate), model.config.router_objective
    announce(f"Fitting the {objective} router on {len(rows)} rows ...")
    if objective == "utility" and model.config.router_shares_expert is not None:
        fit_closed_form_router(model.cpu(), rows, task.score())
    else:
        if objective == "utility":
            # The output layer starts at the experts' mean utility, to which it would have to move first.
            logits = torch.tensor([row["expert_logits"] for row in rows])
            utilities = expert_utilities(logits, labels_of(rows), task.problem_type)
            model.router.out_proj.bias.data.copy_(utilities.mean(dim=0))
        train(f"router-{objective}", model.train(), rows, epochs, learning_rate)
    model.experts.requires_grad_(True)
    return {name: value.cpu() for name, value in model.cpu().router.state_dict().items()}
