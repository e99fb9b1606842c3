# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the pool returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SecureRouterOutput(ModelOutput):
    """Output of [`SecureRouterForSequenceClassification`]. Shapes: B examples, K experts, C labels.

    Args:
        loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            `task_loss + alpha * balance_loss + beta * cost_loss`; in training also the mean over the experts of the
            weighted losses inside those that are mixtures ([`SecureMoeForSequenceClassification`]).
        logits (`torch.FloatTensor` of shape (B, C)):
            Before the softmax: the mixture of equation 1 in training, the chosen expert's in evaluation.
        router_logits (`torch.FloatTensor` of shape (B, K)):
            The router's outputs; predicted utilities if `router_objective="utility"`.
        router_probs (`torch.FloatTensor` of shape (B, K), float32):
            The weights of equation 1: the Gumbel-softmax sample in training, the softmax in evaluation.
        expert_indices (`torch.LongTensor` of shape (B,)):
            The decision, `argmax(router_logits - routing_lambda * expert_costs)`; of equal values the first.
        expert_logits (`torch.FloatTensor` of shape (B, K, C), returned in training):
            Every expert's output, computed or cached.
        expected_cost (`torch.FloatTensor` of shape (B,), float32):
            Equation 5, in the units of `expert_costs`.
        task_loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            Equation 2. In training with `router_objective="utility"`, the mean of the experts' own task losses plus
            the squared error of the predicted utilities.
        balance_loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            Equation 4, from `router_probs`, not weighted.
        cost_loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            Equation 6, from `router_probs`, not weighted.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    router_logits: torch.Tensor | None = None
    router_probs: torch.Tensor | None = None
    expert_indices: torch.Tensor | None = None
    expert_logits: torch.Tensor | None = None
    expected_cost: torch.Tensor | None = None
    task_loss: torch.Tensor | None = None
    balance_loss: torch.Tensor | None = None
    cost_loss: torch.Tensor | None = None
