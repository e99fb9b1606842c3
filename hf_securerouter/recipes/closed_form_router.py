# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
A utility router on a frozen encoder, in closed form.

Where an expert's encoder is the router's too, most of what can be known of that expert's answer is how far its logits
are apart. A perceptron would have to find that in some hundred rows. Here its hidden units are ramps over a linear
reading of these margins, and ridge regression on the utilities gives its output: no step size, no epochs, less noise.

The utilities are those of the task's score. Where that is no mean over answers, as F1 is none, right answers are not
worth the same everywhere, and a router that took them for that would be good at something else.
"""

import numpy as np
import torch
from torch.nn.functional import one_hot

from hf_securerouter.losses import joint_belief, target_utilities


KNOTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # where ramps begin, in deviations of a margin
PROBE_PENALTY, RAMP_PENALTY = 0.1, 0.01  # a probe reads hundreds of numbers, and there are few ramps


def ridge(inputs, targets, penalty):
    """The linear map from inputs (N, F) to targets (N, M) and its intercept, which costs `penalty` times its squares
    beside the mean squared error: `(F, M)` and `(M,)`, float64."""
    inputs, targets = inputs.double(), targets.double()
    centre, mean = inputs.mean(dim=0), targets.mean(dim=0)
    inputs = inputs - centre
    diagonal = penalty * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(inputs.T @ inputs + diagonal, inputs.T @ (targets - mean))
    return weights, mean - centre @ weights


def margins(logits):
    """What tells how sure an expert is, (N, M): the difference of two logits, more of them less their mean, a value
    as it is."""
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    return logits if logits.shape[1] == 1 else logits - logits.mean(dim=1, keepdim=True)


def score_gains(answers, own, references, labels, weights, score):
    """
    How much a score of the answers `own` would gain, times N, by every expert's answer in the place of one of them.

    Args:
        answers (`np.ndarray` of shape (N, K)): Class or value that each expert predicts.
        own (`np.ndarray` of shape (N,)): Answers, of which one at a time is replaced.
        references (`np.ndarray` of shape (N,)): The right ones.
        labels (`np.ndarray` of shape (N, L)): What may be right in a row, when that row's answer is replaced.
        weights (`np.ndarray` of shape (N, L)): How likely each of them is.
        score (callable): Of predictions (N,) and references (N,); higher is better.

    Returns:
        `np.ndarray` of shape (N, K): 0 where an expert's answer is the same.
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


def score_utilities(logits, labels, problem_type, score):
    """
    [`target_utilities`], but that experts differ by what the score gains by their answers among those of the best
    expert. If the score is a mean over answers, they are the same.

    Args:
        logits (`torch.Tensor` of shape (N, K, C)): Output of every expert.
        labels (`torch.Tensor` of shape (N,)): The right classes or values.
        problem_type (`str`): `"single_label_classification"` or `"regression"`.
        score (callable): Of predictions (N,) and references (N,); higher is better.

    Returns:
        `torch.Tensor` of shape (N, K), float64.
    """
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


@torch.no_grad()
def fit_closed_form_router(model, rows, score):
    """Set the perceptron of a pool whose router shares an encoder, and that encoder's summaries are in the rows.

    Args:
        model (`SecureRouterForSequenceClassification`): With `router_objective="utility"`.
        rows (list of dict): With `router_summary`, `expert_logits` and `labels`.
        score (callable): What the pool is to be good at, of predictions (N,) and references (N,).
    """
    config, router = model.config, model.router
    summaries, logits = (torch.tensor([row[name] for row in rows]) for name in ("router_summary", "expert_logits"))
    labels = torch.tensor([row["labels"] for row in rows])
    utilities = score_utilities(logits, labels, config.problem_type, score)
    scale = summaries.std(correction=0)
    probe, offset = ridge(summaries / scale, margins(logits[:, config.router_shares_expert]), PROBE_PENALTY)
    probe = probe / scale
    unit = (summaries.double() @ probe).std(dim=0, correction=0).clamp(min=1e-6)  # some experts always say the same
    ramps = [(sign, knot) for knot in KNOTS for sign in (1.0, -1.0)]
    count = len(ramps) * probe.shape[1]
    router.dense.weight[:count] = torch.cat([sign * (probe / unit).T for sign, _ in ramps]).to(router.dense.weight)
    router.dense.bias[:count] = torch.cat([sign * (offset / unit - knot) for sign, knot in ramps]).to(
        router.dense.bias
    )
    weights, bias = ridge(torch.relu(router.dense(summaries))[:, :count], utilities, RAMP_PENALTY)
    router.out_proj.weight.zero_()[:, :count] = weights.T.to(router.out_proj.weight)
    router.out_proj.bias.copy_(bias)
