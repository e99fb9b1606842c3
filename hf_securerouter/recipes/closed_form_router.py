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
from typing import NamedTuple

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


def disagreement(logits: torch.Tensor, largest: torch.Tensor, problem_type: ProblemType) -> torch.Tensor:
    """
    How unlikely the largest expert holds an expert's answers to be.

    Args:
        logits (`torch.Tensor` of shape (N, C)): Outputs of the expert.
        largest (`torch.Tensor` of shape (N, C)): Outputs of the largest expert, calibrated.
        problem_type (`str`): `"single_label_classification"` or `"regression"`.

    Returns:
        `torch.Tensor` of shape (N, 1): 1 minus the probability that the largest expert gives to the class that the
        other one predicts; the squared difference of two values.
    """
    if problem_type == "regression":
        return (logits - largest).square()
    return 1 - largest.softmax(dim=1).gather(1, logits.argmax(dim=1, keepdim=True))


def leading(readings: torch.Tensor, count: int) -> torch.Tensor:
    """
    At most `count` readings: all of them, or else their principal components.

    Args:
        readings (`torch.Tensor` of shape (N, M)): What a router should find in a summary.
        count (`int`): At least 1.
    """
    if readings.shape[1] <= count:
        return readings
    centred = readings.double() - readings.double().mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, -count:]


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


class Perceptron(NamedTuple):
    """
    A router's two layers with ReLU between them, U hidden units.

    Args:
        dense (`torch.Tensor` of shape (U, F)), dense_bias (`torch.Tensor` of shape (U,)): The first layer, float64.
        out (`torch.Tensor` of shape (K, U)), out_bias (`torch.Tensor` of shape (K,)): The second layer, float64.
    """

    dense: torch.Tensor
    dense_bias: torch.Tensor
    out: torch.Tensor
    out_bias: torch.Tensor

    def scores(self, summaries: torch.Tensor) -> torch.Tensor:
        """The router's outputs (N, K), float64, for summaries (N, F)."""
        return torch.relu(summaries.double() @ self.dense.T + self.dense_bias) @ self.out.T + self.out_bias


def fit_perceptron(summaries: torch.Tensor, readings: torch.Tensor, utilities: torch.Tensor) -> Perceptron:
    """
    Ramps over linear readings of a summary, and ridge regression of the utilities on them.

    Args:
        summaries (`torch.Tensor` of shape (N, F)): What the router reads.
        readings (`torch.Tensor` of shape (N, M)): What it should find in that.
        utilities (`torch.Tensor` of shape (N, K)): What its outputs should be.

    Returns:
        [`Perceptron`], with a ramp in each direction at each of the `KNOTS` of each reading.
    """
    scale = summaries.std(correction=0)
    probe, offset = ridge(summaries / scale, readings, PROBE_PENALTY)
    probe = probe / scale
    unit = (summaries.double() @ probe).std(dim=0, correction=0).clamp(min=1e-6)  # a reading may be constant
    ramps = [(sign, knot) for knot in KNOTS for sign in (1.0, -1.0)]
    dense = torch.cat([sign * (probe / unit).T for sign, _ in ramps])
    dense_bias = torch.cat([sign * (offset / unit - knot) for sign, knot in ramps])
    weights, bias = ridge(torch.relu(summaries.double() @ dense.T + dense_bias), utilities, RAMP_PENALTY)
    return Perceptron(dense, dense_bias, weights.T, bias)


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
    most = router.dense.out_features // (2 * len(KNOTS))
    found = fit_perceptron(summaries, leading(margins(logits[:, config.router_shares_expert]), most), utilities)
    count = len(found.dense)
    router.dense.weight[:count] = found.dense.to(router.dense.weight)
    router.dense.bias[:count] = found.dense_bias.to(router.dense.bias)
    router.out_proj.weight.zero_()[:, :count] = found.out.to(router.out_proj.weight)
    router.out_proj.bias.copy_(found.out_bias)
