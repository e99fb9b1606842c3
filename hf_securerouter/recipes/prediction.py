# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Outputs of a model for many rows."""

from __future__ import annotations

import inspect

import torch
from torch import nn


def device():
    """Where inference runs."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


@torch.no_grad()
def predict(model, rows, collate, outputs=("logits",), batch_size=64):
    """Outputs of a model for all rows, in their order, on the CPU; one tensor for each name in `outputs`."""
    model.eval()
    device = next(model.parameters()).device
    accepted = inspect.signature(model.forward).parameters
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    found = {name: [] for name in outputs}
    for start in range(0, len(order), batch_size):
        batch = collate([rows[index] for index in order[start : start + batch_size]])
        batch = {name: value.to(device) for name, value in batch.items() if name in accepted and name != "labels"}
        output = model(**batch)
        for name in outputs:
            found[name].append(output[name].float().cpu())
    back = torch.tensor(order).argsort()
    return [torch.cat(found[name])[back] for name in outputs]


class Summary(nn.Module):
    """What a pool's router reads, as a model of its own for [`predict`]."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return {"summary": self.pool.router.summarize(**inputs)}
