# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
A utility router on a frozen encoder, in closed form.

Where an expert's encoder is the router's too, most of what can be known of that expert's answer is how far its logits
are apart. A perceptron would have to find that in some hundred rows. Here its hidden units are ramps over a linear
reading of these margins, and ridge regression on the utilities gives its output: no step size, no epochs, less noise.
"""

import torch

from hf_securerouter.losses import target_utilities


KNOTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # where ramps begin, in deviations of a margin
PENALTY = 0.1


def ridge(inputs, targets):
    """The linear map from inputs (N, F) to targets (N, M) and its intercept: `(F, M)` and `(M,)`, float64."""
    inputs, targets = inputs.double(), targets.double()
    centre, mean = inputs.mean(dim=0), targets.mean(dim=0)
    inputs = inputs - centre
    penalty = PENALTY * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ (targets - mean))
    return weights, mean - centre @ weights


def margins(logits):
    """What tells how sure an expert is, (N, M): the difference of two logits, more of them less their mean, a value
    as it is."""
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    return logits if logits.shape[1] == 1 else logits - logits.mean(dim=1, keepdim=True)


@torch.no_grad()
def fit_router(model, rows):
    """Set the perceptron of a pool whose router shares an encoder, and that encoder's summaries are in the rows.

    Args:
        model (`SecureRouterForSequenceClassification`): With `router_objective="utility"`.
        rows (list of dict): With `router_summary`, `expert_logits` and `labels`.
    """
    config, router = model.config, model.router
    summaries, logits = (torch.tensor([row[name] for row in rows]) for name in ("router_summary", "expert_logits"))
    labels = torch.tensor([row["labels"] for row in rows])
    utilities = target_utilities(logits, labels, config.expert_costs, config.problem_type)
    scale = summaries.std(correction=0)
    probe, offset = ridge(summaries / scale, margins(logits[:, config.router_shares_expert]))
    probe = probe / scale
    unit = (summaries.double() @ probe).std(dim=0, correction=0).clamp(min=1e-6)  # some experts always say the same
    ramps = [(sign, knot) for knot in KNOTS for sign in (1.0, -1.0)]
    count = len(ramps) * probe.shape[1]
    router.dense.weight[:count] = torch.cat([sign * (probe / unit).T for sign, _ in ramps]).to(router.dense.weight)
    router.dense.bias[:count] = torch.cat([sign * (offset / unit - knot) for sign, knot in ramps]).to(
        router.dense.bias
    )
    weights, bias = ridge(torch.relu(router.dense(summaries))[:, :count], utilities)
    router.out_proj.weight.zero_()[:, :count] = weights.T.to(router.out_proj.weight)
    router.out_proj.bias.copy_(bias)
