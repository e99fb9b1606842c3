# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What truncation on shares changes in the logits of experts of reduced precision, by the place of the truncation.

Truncation rounds up or down at random and without bias, so that encrypted logits scatter around those of the clear
model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_securerouter.families import head_of, layers_of
from hf_securerouter.known_arguments import refuses_unknown, refuses_unknown_init
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.arguments import DataArguments, option
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.fitting import Collate, Row
from hf_securerouter.recipes.prediction import expert_inputs


PARTS = "query", "key", "value", "attention output", "norm", "intermediate", "output", "norm"


@refuses_unknown_init
@dataclass
class RoundingArguments(DataArguments):
    """The pool, the rows and how often each is rounded."""

    router: str = option("", "Folder of a pool with experts of reduced precision.")
    max_eval_samples: int | None = option(64, "Use only this many validation rows, the first ones.")
    repeats: int = option(5, "Times that each row is rounded.")
    seed: int = option(42, "Of the rounding.")


def places(expert: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """
    All modules that truncate in training, by their kind.

    Args:
        expert (`PreTrainedModel`): A classifier of reduced precision.
    """
    found: dict[str, list[nn.Module]] = {"head": [*head_of(expert)], "softmax": []}
    for layer in layers_of(expert):
        for kind, module in zip(PARTS, layer, strict=True):
            found.setdefault(kind, []).append(module)
        # The attention function truncates where the module that owns the queries is in training.
        found["softmax"] += [
            owner for owner in expert.modules() if any(layer.query is own for own in owner.children())
        ]
    return found


@torch.no_grad()
def errors(
    expert: PreTrainedModel, batch: dict[str, torch.Tensor], modules: Sequence[nn.Module], repeats: int
) -> torch.Tensor:
    """
    What truncation in some modules changes in the logits.

    Args:
        expert (`PreTrainedModel`): A classifier of reduced precision, without dropout.
        batch (`dict`): Inputs of shape (N, T).
        modules (sequence of `nn.Module`): Where values are truncated; in all others they are not.
        repeats (`int`): Times that each input is computed.

    Returns:
        `torch.Tensor` of shape (repeats, N, C): Logits minus those of the clear model.
    """
    clear = expert.eval()(**batch).logits
    for module in modules:
        module.training = True
    found = torch.stack([expert(**batch).logits for _ in range(repeats)]) - clear
    expert.eval()
    return found


@refuses_unknown
def errors_by_place(
    model: SecureRouterForSequenceClassification, rows: Sequence[Row], collate: Collate, repeats: int
) -> Iterator[dict[str, Any]]:
    """
    Errors of the logits of every expert of reduced precision, for all places together and for each alone.

    Args:
        model (`SecureRouterForSequenceClassification`): The pool.
        rows (sequence of `dict`): Tokenized rows.
        collate (callable): Rows as one padded batch.
        repeats (`int`): Times that each row is rounded.

    Yields:
        `dict`: `expert`, `place`, and of its logits' errors the root mean square `rms` and the `largest`.
    """
    experts: Any = model.experts
    for index, expert in enumerate(experts):
        if expert.expert_mpc["precision"] == "full":
            continue
        for module in expert.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        batch = expert_inputs(expert, collate(shortened(rows, model.config.length_of(index), expert.config)))
        del batch["labels"]
        kinds = places(expert)
        kinds = {"all": [module for modules in kinds.values() for module in modules]} | kinds
        for kind, modules in kinds.items():
            found = errors(expert, batch, modules, repeats)
            figures = {"rms": found.square().mean().sqrt(), "largest": found.abs().max()}
            yield {"expert": index, "place": kind} | {name: float(f"{value:.2g}") for name, value in figures.items()}
