# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Outputs of a model for many rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.pool import accepted_inputs
from hf_securerouter.recipes.artifacts import Countdown
from hf_securerouter.recipes.fitting import Collate, Row
from hf_securerouter.recipes.tasks import Task


M = TypeVar("M", bound=nn.Module)


def device() -> torch.device:
    """Where inference runs: the accelerator, if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


@refuses_unknown
def to_device(model: M) -> M:
    """A model, moved to where inference runs."""
    return cast(Any, model).to(device())  # transformers types the `to` of its models as if it were unbound


@refuses_unknown
def expert_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """
    The columns of a batch that a model is given: an expert alone reads token types where it reads them in a pool.
    GPT-2 would look them up among its words.

    Args:
        model (`nn.Module`): An expert, perhaps in a wrapper that trains it in several processes; or a model that holds
            experts and chooses for each what it reads, such as a pool.
        batch (`Mapping`): Inputs of shape (B, T), perhaps with labels.
    """
    model = getattr(model, "module", model)
    if isinstance(model, PreTrainedModel) and not isinstance(model, SecureRouterForSequenceClassification):
        return accepted_inputs(model, dict(batch))
    return dict(batch)


@refuses_unknown
@torch.no_grad()
def predict(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Collate,
    outputs: Sequence[str] = ("logits",),
    batch_size: int = 64,
    bf16: bool = False,
) -> list[torch.Tensor]:
    """
    Outputs of a model for all rows, in their order. Rows of similar length share a batch, so that little is padding.

    Args:
        model (`nn.Module`): The model; it runs where its parameters are, in evaluation mode.
        rows (sequence of `dict`): Tokenized rows.
        collate (callable): Rows as one padded batch.
        outputs (sequence of `str`): Names of the wanted outputs.
        batch_size (`int`): Rows of one batch.
        bf16 (`bool`): Whether to compute products in bfloat16.

    Returns:
        list of `torch.Tensor`: One of shape (N, ...) for each name, float32, on the CPU.
    """
    model.eval()
    where = next(model.parameters()).device
    accepted = inspect.signature(model.forward).parameters
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    found: dict[str, list[torch.Tensor]] = {name: [] for name in outputs}
    countdown = Countdown(len(order), "rows")
    for start in range(0, len(order), batch_size):
        countdown(start)
        batch = collate([rows[index] for index in order[start : start + batch_size]])
        batch = {name: value.to(where) for name, value in batch.items() if name in accepted and name != "labels"}
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            output = model(**expert_inputs(model, batch))
        for name in outputs:
            found[name].append(output[name].float().cpu())
    back = torch.tensor(order).argsort()
    return [torch.cat(found[name])[back] for name in outputs]


@refuses_unknown
def decide(task: Task, logits: torch.Tensor) -> np.ndarray:
    """The answers that logits stand for.

    Args:
        task ([`Task`]): The task.
        logits (`torch.Tensor` of shape (..., C)): On the CPU.

    Returns:
        `np.ndarray` of shape (...): Class ids, of a regression values.
    """
    return (logits[..., 0] if task.regression else logits.argmax(dim=-1)).numpy()


def labels_of(rows: Sequence[Row]) -> torch.Tensor:
    """The labels of tokenized rows, (N,): int64, of a regression float32."""
    return torch.tensor([row["labels"] for row in rows])


class Summary(nn.Module):
    """What a pool's router reads of a row, as a model of its own for [`predict`]: `summary` of shape (B, H)."""

    def __init__(self, pool: SecureRouterForSequenceClassification) -> None:
        super().__init__()
        self.pool = pool

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return {"summary": self.pool.router.summarize(**inputs)}
