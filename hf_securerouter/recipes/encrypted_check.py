# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The validation split under encryption: are the answers those of the clear model?"""

import torch

from hf_securerouter.metrics import glue_metric
from hf_securerouter.routing import serve_by_quota


NOISE, NARROW_NOISE = 0.02, 0.5  # what encrypted logits may be from the clear ones, in full precision and in w8a8


def encrypted_answers(pool, quotas, rows, collate, max_length):
    """Logits (N, C) of the pool on secret shares under `quota`, in the order of the rows."""
    secure = pool.to_mpc(routing_privacy="quota", quotas=list(quotas), max_length=max_length)
    batch = collate(rows)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with secure.local_session() as session:
        return session({name: batch[name] for name in names if name in batch}).logits


def compare_with_clear(task, found, scores, logits, quotas, costs, labels, narrow=False):
    """How the encrypted answers differ from those of the clear model under the same policy.

    Args:
        task (`Task`): The task.
        found (`torch.Tensor` of shape (N, C)): Encrypted logits.
        scores (`torch.Tensor` of shape (N, K)): The router's outputs in clear.
        logits (`torch.Tensor` of shape (N, K, C)): The experts' in clear.
        quotas (list of K integers), costs (list of K numbers): The policy.
        labels (`torch.Tensor` of shape (N,)): The right ones.
        narrow (`bool`): Whether one of the experts has a narrow precision.

    Returns:
        `dict`: `inputs`, `labels_equal` (None for a score), `served_elsewhere`: how many inputs another expert
        answered than in clear, which happens where the router's scores of two are nearly equal, `largest_error` of a
        logit against the expert that answered, and the metrics of both.
    """
    served = serve_by_quota(scores, quotas, costs)
    clear = logits[torch.arange(len(served)), served]
    answers = [both[:, 0] if task.regression else both.argmax(dim=1) for both in (found, clear)]
    errors = (found[:, None] - logits).abs().amax(dim=2)
    nearest, own = errors.min(dim=1).values, errors[torch.arange(len(served)), served]
    metric = glue_metric(task.name)
    return {
        "inputs": len(found),
        "labels_equal": None if task.regression else int((answers[0] == answers[1]).sum()),
        "served_elsewhere": int((own > nearest + (NARROW_NOISE if narrow else NOISE)).sum()),
        "largest_error": float(nearest.max()),
        "metrics": metric(answers[0].numpy(), labels.numpy()),
        "clear_metrics": metric(answers[1].numpy(), labels.numpy()),
    }
