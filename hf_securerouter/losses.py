# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Losses that train a router and its experts together: equations 1 to 6 of the SecureRouter paper, section 3.4, and
the regression of each expert's utility.

Shapes: B examples, K experts, C outputs of an expert. Everything is computed in float32, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .configuration_securerouter import ProblemType
from .errors import SecureRouterValueError


def mix_experts(expert_logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Equation 1: the experts' outputs, weighted by the router.

    Logits are mixed, not probabilities. With one-hot weights both give the chosen expert's answer. But a mixture of
    logits is a logit too: the cross-entropy of equation 2 and the softmax of a pipeline apply to it unchanged, and
    regression needs no extra rule.

    Args:
        expert_logits (`torch.Tensor` of shape (B, K, C)): Output of every expert.
        weights (`torch.Tensor` of shape (B, K)): Router's weights, each row a distribution.

    Returns:
        `torch.Tensor` of shape (B, C), in the dtype of `expert_logits`.
    """
    return torch.einsum("bk,bkc->bc", weights.float(), expert_logits.float()).to(expert_logits.dtype)


def task_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: ProblemType,
    class_weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Equation 2: cross-entropy for one label of several, mean squared error for regression, binary cross-entropy for
    several labels at once.

    Args:
        logits (`torch.Tensor` of shape (B, C)): Outputs, of the mixture or of one expert.
        labels (`torch.Tensor`): Classes, shape (B,) int64; values, shape (B,) or (B, C); or (B, C) of zeros and ones.
        problem_type (`str`): `"single_label_classification"`, `"regression"` or `"multi_label_classification"`.
        class_weights (C positive numbers, *optional*): How much an example of each class counts; of several labels,
            how much a label counts where it holds. A regression has none.

    Returns:
        `torch.Tensor`: The mean over the batch, a scalar; with weights of classes the weighted mean.
    """
    logits = logits.float()
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.view(-1), weight=weights)
    if problem_type == "regression":
        return F.mse_loss(logits, labels.float().view_as(logits))
    return F.binary_cross_entropy_with_logits(logits, labels.float().view_as(logits), pos_weight=weights)


def expert_loads(weights: torch.Tensor) -> torch.Tensor:
    """Equation 3: the routing weight that each expert receives from the batch; (B, K) to (K,)."""
    return weights.float().sum(dim=0)


def balance_loss(weights: torch.Tensor) -> torch.Tensor:
    """Equation 4: the squared coefficient of variation of the experts' loads, their variance over their squared mean.
    Zero if all experts are used alike; at most K - 1, if one expert gets all weight.

    Args:
        weights (`torch.Tensor` of shape (B, K)): Router's weights.

    Returns:
        `torch.Tensor`: A scalar, of no unit.
    """
    loads = expert_loads(weights)
    return loads.var(correction=0) / loads.mean().square()


def expected_cost(weights: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """Equation 5: the expected cost of each example, (B,), in the units of `costs` (K,)."""
    return weights.float() @ costs.float()


def cost_loss(weights: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """Equation 6: the mean of [`expected_cost`] over the batch, a scalar in the units of `costs`."""
    return expected_cost(weights, costs).mean()


def expert_utilities(expert_logits: torch.Tensor, labels: torch.Tensor, problem_type: ProblemType) -> torch.Tensor:
    """How good each expert's answer is: 1 or 0 for a right or a wrong class, the share of right labels when there are
    several, minus the squared error in regression.

    Args:
        expert_logits (`torch.Tensor` of shape (B, K, C)): Output of every expert.
        labels (`torch.Tensor`): As for [`task_loss`].
        problem_type (`str`): As for [`task_loss`].

    Returns:
        `torch.Tensor` of shape (B, K), without gradient.
    """
    logits = expert_logits.detach().float()
    if problem_type == "single_label_classification":
        return (logits.argmax(dim=-1) == labels.view(-1, 1)).float()
    labels = labels.float().view(logits.shape[0], 1, logits.shape[2])
    if problem_type == "regression":
        return -(logits - labels).square().mean(dim=-1)
    return ((logits > 0) == (labels > 0.5)).float().mean(dim=-1)


def joint_belief(expert_logits: torch.Tensor) -> torch.Tensor:
    """The joint prediction of the experts: the mean of their outputs, which for classes is the geometric mean of their
    probabilities. An uncertain expert counts little in it, if all are calibrated.

    Args:
        expert_logits (`torch.Tensor` of shape (B, K, C)): Output of every expert.

    Returns:
        `torch.Tensor` of shape (B, C), float32, without gradient.

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 1: the soft targets of
        an ensemble.
    """
    return expert_logits.detach().float().mean(dim=1)


def believed_utilities(expert_logits: torch.Tensor, problem_type: ProblemType) -> torch.Tensor:
    """The expected [`expert_utilities`] if labels were drawn from the [`joint_belief`] of the experts; in regression
    up to a variance that is the same for all experts.

    A label says only right or wrong; calibrated experts give probabilities, and show on which examples they differ. A
    router that learns from both needs fewer examples.

    Args:
        expert_logits (`torch.Tensor` of shape (B, K, C)): Output of every expert.
        problem_type (`str`): As for [`task_loss`].

    Returns:
        `torch.Tensor` of shape (B, K), without gradient.
    """
    logits, belief = expert_logits.detach().float(), joint_belief(expert_logits)
    if problem_type == "single_label_classification":
        return belief.softmax(dim=-1).gather(1, logits.argmax(dim=-1))
    if problem_type == "regression":
        return -(logits - belief.unsqueeze(1)).square().mean(dim=-1)
    likely = belief.sigmoid().unsqueeze(1)
    return torch.where(logits > 0, likely, 1 - likely).mean(dim=-1)


def target_utilities(expert_logits: torch.Tensor, labels: torch.Tensor, problem_type: ProblemType) -> torch.Tensor:
    """The targets of a utility router: the mean of [`expert_utilities`] and [`believed_utilities`].

    Args:
        expert_logits (`torch.Tensor` of shape (B, K, C)): Output of every expert.
        labels (`torch.Tensor`): As for [`task_loss`].
        problem_type (`str`): As for [`task_loss`].

    Returns:
        `torch.Tensor` of shape (B, K), without gradient.
    """
    believed = believed_utilities(expert_logits, problem_type)
    return (expert_utilities(expert_logits, labels, problem_type) + believed) / 2


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, problem_type: ProblemType) -> float:
    """The temperature by which to divide logits, for the smallest loss on examples that the model was not trained on.

    Args:
        logits (`torch.Tensor` of shape (B, C)): Outputs of one expert.
        labels (`torch.Tensor`): As for [`task_loss`].
        problem_type (`str`): As for [`task_loss`].

    Returns:
        `float`: The temperature between 1/4 and 16 with the smallest loss, to 7 %; 1 in regression.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2.
    """
    if problem_type == "regression":
        return 1.0
    temperatures = [2 ** (step / 10) for step in range(-20, 41)]
    return min(temperatures, key=lambda value: task_loss(logits / value, labels, problem_type).item())


def utility_loss(predicted: torch.Tensor, utilities: torch.Tensor) -> torch.Tensor:
    """Squared error of the utilities that the router predicts, (B, K) each; a scalar.

    The squared error is a proper scoring rule (Brier's), so its minimum is the probability of being right. It needs no
    sigmoid: the router's outputs are the utilities, `utility - lambda * cost` is linear in them, and `lambda * cost`
    is folded into the bias of the last layer before this layer is shared.
    """
    return F.mse_loss(predicted.float(), utilities)


def distillation_loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None, problem_type: ProblemType
) -> torch.Tensor:
    """The loss of an expert that learns from labels and a larger expert (the teacher): the mean of [`task_loss`]
    towards the labels and towards the teacher's probabilities or values.

    Args:
        logits (`torch.Tensor` of shape (B, C)): The expert's outputs.
        labels (`torch.Tensor`): As for [`task_loss`].
        teacher_logits (`torch.Tensor` of shape (B, C), *optional*): The teacher's outputs; if None, only the labels
            count.
        problem_type (`str`): As for [`task_loss`].

    Returns:
        `torch.Tensor`: A scalar.

    Reference:
        Tang et al., Distilling Task-Specific Knowledge from BERT into Simple Neural Networks, arXiv 1903.12136.
    """
    own = task_loss(logits, labels, problem_type)
    if teacher_logits is None:
        return own
    teacher_logits = teacher_logits.float()
    if problem_type == "single_label_classification":
        return (own + F.cross_entropy(logits.float(), teacher_logits.softmax(dim=-1))) / 2
    if problem_type == "multi_label_classification":
        teacher_logits = teacher_logits.sigmoid()
    return (own + task_loss(logits, teacher_logits, problem_type)) / 2


def layer_loss(
    hidden_states: Sequence[torch.Tensor],
    teacher_states: Sequence[torch.Tensor],
    attentions: Sequence[torch.Tensor],
    teacher_attentions: Sequence[torch.Tensor],
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """The loss of an expert with other functions towards the layers of the exact expert (the teacher): squared errors
    of hidden states and of attention, each relative to the teacher's mean square, over all tokens but padding; a mean
    over layers.

    Args:
        hidden_states, teacher_states (sequences of `torch.Tensor` of shape (B, T, H)): Embeddings and layers.
        attentions, teacher_attentions (sequences of `torch.Tensor` of shape (B, heads, T, T)): Weights of each layer.
        attention_mask (`torch.Tensor` of shape (B, T)): 0 for padding.

    Returns:
        `torch.Tensor`: A scalar, of no unit.

    Raises:
        `SecureRouterValueError`: Expert and teacher have other numbers of layers, or layers of other shapes.

    Reference:
        Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, arXiv 1909.10351, equations 7 and 8.
    """
    real = attention_mask.bool()
    errors = []
    pairs = [*zip(hidden_states[1:], teacher_states[1:], strict=False)]
    pairs += [
        (own.transpose(1, 2), target.transpose(1, 2))
        for own, target in zip(attentions, teacher_attentions, strict=False)
    ]
    if len(hidden_states) != len(teacher_states) or any(own.shape != target.shape for own, target in pairs):
        raise SecureRouterValueError(
            f"`hidden_states` of {len(hidden_states) - 1} layers, {tuple(hidden_states[0].shape)} each, cannot follow "
            f"`teacher_states` of {len(teacher_states) - 1} layers, {tuple(teacher_states[0].shape)} each: use "
            "`distillation_loss`, which needs the outputs only."
        )
    for own, target in pairs:
        own, target = own.float()[real], target.float()[real]
        errors.append(F.mse_loss(own, target) / target.square().mean())
    return 2 * torch.stack(errors).mean()


def infer_problem_type(labels: torch.Tensor, num_labels: int) -> ProblemType:
    """The problem that the labels' dtype and the number of outputs imply, as transformers infers it; booleans of shape
    (B, C) are several labels."""
    if num_labels == 1:
        return "regression"
    several = labels.is_floating_point() or (labels.dtype == torch.bool and labels.dim() == 2 and labels.shape[1] > 1)
    return "multi_label_classification" if several else "single_label_classification"


def check_labels(labels: torch.Tensor, batch: int, num_labels: int, problem_type: ProblemType) -> torch.Tensor:
    """Refuses labels that do not fit the outputs.

    Args:
        labels (`torch.Tensor`): The labels of a batch: classes as integers of any size, or as booleans, which are the
            classes 0 and 1; values and several labels as any number or boolean.
        batch (`int`): B, the number of examples.
        num_labels (`int`): C, the outputs of an expert.
        problem_type (`str`): As for [`task_loss`].

    Returns:
        `torch.Tensor`: The labels; classes are int64.

    Raises:
        `SecureRouterValueError`: The labels have a wrong shape, a class outside 0 to C - 1, or a value that is not
            finite (values are looked at on the CPU only, and not in a compiled graph: it would stall an accelerator).
    """
    if problem_type == "single_label_classification":
        if labels.is_floating_point() or labels.numel() != batch:
            raise SecureRouterValueError(
                f"`labels` should hold one integer class for each of the {batch} examples, got shape "
                f"{tuple(labels.shape)} of {labels.dtype}: set `problem_type` if the task is another one, and pass "
                "classes as integers or booleans."
            )
        labels = labels.long()
        if labels.device.type != "cpu" or torch.compiler.is_compiling():
            return labels
        if not bool(((labels >= 0) & (labels < num_labels)).all()):
            wrong = sorted({int(label) for label in labels.view(-1) if not 0 <= label < num_labels})
            raise SecureRouterValueError(
                f"`labels` should be classes from 0 to {num_labels - 1}, got {wrong}: build the model with the "
                "`num_labels` of the data, or map the labels of the data."
            )
    elif labels.numel() != batch * num_labels:
        of_classes = " If they are classes, pass them as integers." if labels.numel() == batch else ""
        raise SecureRouterValueError(
            f"`labels` should hold {num_labels} values for each of the {batch} examples, got shape "
            f"{tuple(labels.shape)}: set `num_labels` to the number of values of one example.{of_classes}"
        )
    elif labels.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(labels.isfinite().all()):
        rows = labels.view(batch, -1)
        row = int((~rows.isfinite()).any(dim=1).int().argmax())
        raise SecureRouterValueError(
            f"`labels` should be finite numbers, got {rows[row].tolist()} in row {row} of the batch: leave out rows "
            "without a label."
        )
    return labels
