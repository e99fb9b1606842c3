# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts whose probabilities can be believed: temperatures, folded into heads, and the errors that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.losses import fit_temperature
from hf_securerouter.recipes.artifacts import once
from hf_securerouter.recipes.tasks import Task
from hf_securerouter.reports import expected_calibration_error


@refuses_unknown
def fit_temperatures(path: Path, task: Task, logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """
    The temperature of each expert, kept in a file.

    Args:
        path (`Path`): The file.
        task ([`Task`]): The task; of a regression all temperatures are 1.
        logits (`torch.Tensor` of shape (N, K, C)): Answers to rows that the experts have not seen.
        labels (`torch.Tensor` of shape (N,)): The right answers.
    """
    return once(path, lambda: [fit_temperature(own, labels, task.problem_type) for own in logits.unbind(dim=1)])


def last_layer(expert: PreTrainedModel) -> nn.Linear:
    """The linear layer of a classifier that gives its logits: the last one that is not of its encoder."""
    inside = set(expert.base_model.modules())
    return [module for module in expert.modules() if isinstance(module, nn.Linear) and module not in inside][-1]


@refuses_unknown
@torch.no_grad()
def fold_temperature(expert: PreTrainedModel, temperature: float) -> None:
    """
    Divide a classifier's logits by a temperature, in the place, in its last layer: its labels stay, and it costs
    nothing on shares.

    Args:
        expert (`PreTrainedModel`): A classifier with exact functions.
        temperature (`float`): Above 0.
    """
    layer = last_layer(expert)
    for values in (layer.weight, layer.bias):
        if values is not None:
            values.div_(temperature)


@refuses_unknown
def calibration_report(
    task: Task,
    logits: torch.Tensor,
    temperatures: Sequence[float],
    labels: torch.Tensor,
    served: Mapping[str, torch.Tensor],
) -> dict[str, Any] | None:
    """
    How far probabilities are from how often they are right.

    Args:
        task ([`Task`]): The task.
        logits (`torch.Tensor` of shape (N, K, C)): Answers of the experts, before temperatures.
        temperatures (K numbers): Of the experts.
        labels (`torch.Tensor` of shape (N,)): The right classes.
        served (`Mapping` of `torch.Tensor` of shape (N,)): The expert of each row, by policy.

    Returns:
        `dict`, *optional*: `temperatures`, and the expected calibration errors `before` and `after` them, each with
        `experts`, K numbers, and `policies`. None for a regression.
    """
    if task.regression:
        return None

    def errors(scaled: torch.Tensor) -> dict[str, Any]:
        rows = torch.arange(len(scaled))
        policies = {name: scaled[rows, chosen] for name, chosen in served.items()}
        return {
            "experts": [expected_calibration_error(own, labels) for own in scaled.unbind(dim=1)],
            "policies": {name: expected_calibration_error(own, labels) for name, own in policies.items()},
        }

    after = logits / torch.tensor(temperatures)[None, :, None]
    return {"temperatures": list(temperatures), "before": errors(logits), "after": errors(after)}
