# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
A utility router on a frozen encoder, in closed form.

If the router shares an expert's encoder, the margin of that expert's logits says most of what can be known of its
answer. A perceptron that is trained would have to find the margin in a few hundred rows. Here the hidden units are
ramps over a linear reading of the margin, and ridge regression on the utilities gives the output layer: no learning
rate, no epochs, less noise.

The utilities are those of the task's score. Where that is no mean over answers, as F1 is none, right answers differ in
worth, and a router fitted to accuracy would be tuned to another score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import one_hot

from hf_securerouter.configuration_securerouter import ProblemType
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.losses import joint_belief, target_utilities
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.fitting import Row
from hf_securerouter.recipes.prediction import labels_of
from hf_securerouter.reports import Score


KNOTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # where ramps begin, in standard deviations of a margin
PROBE_PENALTY, RAMP_PENALTY = 0.1, 0.01  # a probe has hundreds of inputs; ramps are few


def ridge(inputs: torch.Tensor, targets: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Ridge regression: minimises the mean squared error plus `penalty` times the squared weights.

    Args:
        inputs (`torch.Tensor` of shape (N, F)): The features.
        targets (`torch.Tensor` of shape (N, M)): What they should give.
        penalty (`float`): Weight of the squared weights.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Weights (F, M) and intercept (M,), float64.
    """
    inputs, targets = inputs.double(), targets.double()
    centre, mean = inputs.mean(dim=0), targets.mean(dim=0)
    inputs = inputs - centre
    diagonal = penalty * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(inputs.T @ inputs + diagonal, inputs.T @ (targets - mean))
    return weights, mean - centre @ weights


def margins(logits: torch.Tensor) -> torch.Tensor:
    """
    How sure an expert is of its answers.

    Args:
        logits (`torch.Tensor` of shape (N, C)): Its outputs.

    Returns:
        `torch.Tensor` of shape (N, M): The difference of two logits (M = 1), each of more logits minus their mean
        (M = C), or the value of a regression (M = 1).
    """
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    return logits if logits.shape[1] == 1 else logits - logits.mean(dim=1, keepdim=True)


def score_gains(
    answers: np.ndarray,
    own: np.ndarray,
    references: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    score: Score,
) -> np.ndarray:
    """
    How much the score of the answers `own` would gain, times N, if an expert's answer took the place of one of them.

    Args:
        answers (`np.ndarray` of shape (N, K)): Class or value that each expert predicts.
        own (`np.ndarray` of shape (N,)): Answers, of which one at a time is replaced.
        references (`np.ndarray` of shape (N,)): The right answers.
        labels (`np.ndarray` of shape (N, L)): Answers that may be right in a row, when its answer is replaced.
        weights (`np.ndarray` of shape (N, L)): How likely each of these labels is.
        score (callable): Of predictions (N,) and references (N,); higher is better.

    Returns:
        `np.ndarray` of shape (N, K): 0 where an expert gives the same answer as `own`.
    """
    gains = np.zeros(answers.shape)
    for row in np.flatnonzero((answers != own[:, None]).any(axis=1)):
        for label, weight in zip(labels[row], weights[row], strict=True):
            right, changed = references.copy(), own.copy()
            right[row] = label
            before = score(own, right)
            for expert in np.flatnonzero(answers[row] != own[row]):
                changed[row] = answers[row, expert]
                gains[row, expert] += weight * len(own) * (score(changed, right) - before)
    return gains


def score_utilities(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: ProblemType, score: Score
) -> torch.Tensor:
    """
    Utilities in which experts differ by what the score gains if one of their answers replaces the best expert's. If
    the score is a mean over answers, they equal [`~hf_securerouter.losses.target_utilities`].

    Args:
        logits (`torch.Tensor` of shape (N, K, C)): Output of every expert.
        labels (`torch.Tensor` of shape (N,)): The right classes or values.
        problem_type (`str`): `"single_label_classification"` or `"regression"`.
        score (callable): Of predictions (N,) and references (N,); higher is better.

    Returns:
        `torch.Tensor` of shape (N, K), float64.

    Raises:
        `SecureRouterValueError`: The problem has several labels at once, for which no score of single answers is
            defined.
    """
    if problem_type == "multi_label_classification":
        raise SecureRouterValueError(
            "`problem_type` is 'multi_label_classification', and `score` compares one answer of each text: train the "
            "router with `SecureRouterTrainer` instead."
        )
    references, belief = labels.numpy(), joint_belief(logits)
    if problem_type == "regression":
        answers = logits[:, :, 0].numpy()
        possible = np.stack([references, belief[:, 0].numpy()], axis=1)
        weights = np.full(possible.shape, 0.5)
    else:
        answers = logits.argmax(dim=2).numpy()
        possible = np.broadcast_to(np.arange(logits.shape[2]), belief.shape)
        weights = ((belief.softmax(dim=1) + one_hot(labels, logits.shape[2])) / 2).numpy()
    best = max(range(answers.shape[1]), key=lambda expert: score(answers[:, expert], references))
    gains = score_gains(answers, answers[:, best], references, possible, weights, score)
    return target_utilities(logits, labels, problem_type)[:, best : best + 1] + torch.from_numpy(gains)


@refuses_unknown
@torch.no_grad()
def fit_closed_form_router(model: SecureRouterForSequenceClassification, rows: Sequence[Row], score: Score) -> None:
    """
    Sets the perceptron of a router that shares an expert's encoder, in the place.

    Args:
        model (`SecureRouterForSequenceClassification`): With `router_objective="utility"`, on the CPU.
        rows (sequence of `dict`): With `router_summary` (H numbers), `expert_logits` (K lists of C numbers) and
            `labels`.
        score (callable): The score to be reached, of predictions (N,) and references (N,).
    """
    config, router = model.config, model.router
    assert config.router_shares_expert is not None
    summaries, logits = (torch.tensor([row[name] for row in rows]) for name in ("router_summary", "expert_logits"))
    problem_type: ProblemType = config.problem_type  # type: ignore[assignment]
    utilities = score_utilities(logits, labels_of(rows), problem_type, score)
    scale = summaries.std(correction=0)
    probe, offset = ridge(summaries / scale, margins(logits[:, config.router_shares_expert]), PROBE_PENALTY)
    probe = probe / scale
    unit = (summaries.double() @ probe).std(dim=0, correction=0).clamp(min=1e-6)  # an expert's margin may be constant
    ramps = [(sign, knot) for knot in KNOTS for sign in (1.0, -1.0)]
    count = len(ramps) * probe.shape[1]
    router.dense.weight[:count] = torch.cat([sign * (probe / unit).T for sign, _ in ramps]).to(router.dense.weight)
    router.dense.bias[:count] = torch.cat([sign * (offset / unit - knot) for sign, knot in ramps]).to(
        router.dense.bias
    )
    weights, bias = ridge(torch.relu(router.dense(summaries))[:, :count], utilities, RAMP_PENALTY)
    router.out_proj.weight.zero_()[:, :count] = weights.T.to(router.out_proj.weight)
    router.out_proj.bias.copy_(bias)
