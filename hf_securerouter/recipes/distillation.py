# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts that learn from a larger one, or layer by layer from an exact one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_securerouter.fixed_point_layers import FixedPointLinear
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.losses import distillation_loss, layer_loss
from hf_securerouter.range_penalty import range_penalty
from hf_securerouter.recipes.data import perturb
from hf_securerouter.recipes.fitting import Collate, Row, Train
from hf_securerouter.recipes.prediction import expert_inputs, predict
from hf_securerouter.recipes.tasks import Task


RANGE_WEIGHT = 10.0  # of the range penalty
OUTLIER = 0.5  # larger weights make values leave their bounds, and an optimizer would take long to shrink them


@refuses_unknown
def expert_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """
    The loss of an expert on a batch: that of the labels, or the mean of that and of the distance to the teacher's
    answers where the batch has them; plus the loss that the model itself returns, or that of a mixture's routers.

    Args:
        model (`nn.Module`): A classifier or a [`Follower`].
        batch (`dict`): Inputs of shape (B, T), `labels` of shape (B,), and perhaps `teacher_logits` of shape (B, C).

    Returns:
        `tuple`: The loss, a scalar, and the model's output.
    """
    batch = dict(batch)
    teacher = batch.pop("teacher_logits", None)
    labels = batch.pop("labels")
    output = model(**expert_inputs(model, batch))
    config: Any = getattr(model, "module", model).config
    loss = distillation_loss(output.logits, labels, teacher, config.problem_type)
    for own in (output.loss, output.get("router_loss")):
        loss = loss if own is None else loss + own
    return loss, output


@refuses_unknown
def distillation_rows(
    rows: Sequence[Row],
    teacher: nn.Module,
    collate: Collate,
    task: Task,
    copies: int,
    special_ids: set[int],
    seed: int,
    bf16: bool = False,
) -> list[Row]:
    """
    Rows with the teacher's answers, and perturbed copies that only the teacher has labelled.

    Args:
        rows (sequence of `dict`): Tokenized rows.
        teacher (`nn.Module`): A trained classifier.
        collate (callable): Rows as one padded batch.
        task ([`Task`]): Their description.
        copies (`int`): Perturbed copies of each row.
        special_ids (set of `int`): Tokens that are not replaced.
        seed (`int`): Of the perturbation.
        bf16 (`bool`): Whether the teacher computes products in bfloat16, as it did when it was trained.

    Returns:
        list of `dict`: `len(rows) * (1 + copies)` rows with `teacher_logits`, a list of C numbers.
    """
    perturbed = perturb(rows, copies, special_ids, seed)
    logits = _answer_together(teacher, [*rows, *perturbed], collate, bf16)
    for row, answer in zip(perturbed, logits[len(rows) :], strict=True):
        row["labels"] = answer.item() if task.regression else answer.argmax().item()
    return [row | {"teacher_logits": own.tolist()} for row, own in zip([*rows, *perturbed], logits, strict=True)]


def _answer_together(model: nn.Module, rows: list[Row], collate: Collate, bf16: bool) -> torch.Tensor:
    """Logits (N, C) for all rows in every process, each of which computes its part of them."""
    state = PartialState()
    first, step = state.process_index, state.num_processes
    parts = gather_object(predict(model, rows[first::step], collate, bf16=bf16))
    logits = torch.empty(len(rows), parts[0].shape[1])
    for index, part in enumerate(parts):
        logits[index::step] = part
    return logits


class Follower(nn.Module):
    """
    An expert that learns from an exact one layer by layer; `loss` is the distance between their layers, plus the range
    penalty of a reduced precision.

    Inputs: token ids, attention mask and token types of shape (B, T). Output: `loss`, a scalar, and `logits` of shape
    (B, C).

    Args:
        expert (`PreTrainedModel`): Learns, in the place. Its embeddings are frozen and its dropout is switched off.
        exact (`PreTrainedModel`): Of the same depth and width; it is frozen. With another number of heads, hidden
            states alone are compared.
    """

    @refuses_unknown
    def __init__(self, expert: PreTrainedModel, exact: PreTrainedModel) -> None:
        super().__init__()
        exact.set_attn_implementation("eager")  # no other implementation returns attention weights
        functions: dict[str, str] = expert.expert_mpc  # type: ignore[assignment]
        if functions["softmax"] == "exact" and functions["precision"] == "full":
            expert.set_attn_implementation("eager")
        expert.get_input_embeddings().requires_grad_(False)  # they stay in clear text at the client
        for module in expert.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # rounding is noise enough
        self.expert, self.exact = expert, exact.requires_grad_(False)
        self.config, self.precision = expert.config, functions["precision"]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.exact.eval()
        return self

    def forward(self, attention_mask: torch.Tensor, **inputs: Any) -> SequenceClassifierOutput:
        inputs = expert_inputs(self.expert, inputs) | {"attention_mask": attention_mask}
        inputs |= {"output_hidden_states": True, "output_attentions": True}
        with range_penalty(attention_mask) as penalty:
            own = self.expert(**inputs)
        with torch.no_grad():
            target = self.exact(**inputs)
        attentions = own.attentions, target.attentions
        if self.expert.config.num_attention_heads != self.exact.config.num_attention_heads:
            attentions = (), ()
        loss = layer_loss(own.hidden_states, target.hidden_states, *attentions, attention_mask)
        if self.precision != "full":
            loss = loss + RANGE_WEIGHT * penalty()
        return SequenceClassifierOutput(loss=loss, logits=own.logits)


@refuses_unknown
def distil_layers(
    name: str,
    expert: PreTrainedModel,
    exact: PreTrainedModel,
    rows: Sequence[Row],
    train: Train,
    epochs: float,
    learning_rate: float,
) -> None:
    """
    Trains an expert in the place to compute what an exact one does, with its own functions and precision.

    Args:
        name (`str`): Of the step.
        expert (`PreTrainedModel`), exact (`PreTrainedModel`): As for [`Follower`].
        rows (sequence of `dict`): Tokenized rows with `labels` and `teacher_logits`, those of `exact`.
        train (callable): Trains a model.
        epochs (`float`), learning_rate (`float`): Of the step.
    """
    for layer in expert.modules():
        if isinstance(layer, FixedPointLinear) and layer.format.centred:
            layer.weight.data.clamp_(-OUTLIER, OUTLIER)
    train(name, Follower(expert, exact).train(), rows, epochs, learning_rate)


@refuses_unknown
@torch.no_grad()
def widest_value(expert: PreTrainedModel, rows: Sequence[Row], collate: Collate, batch_size: int = 64) -> float:
    """
    The largest value of an expert over its bound; above 1 a bound is exceeded and the encrypted result is wrong.

    Args:
        expert (`PreTrainedModel`): Of a reduced precision.
        rows (sequence of `dict`): Tokenized rows.
        collate (callable): Rows as one padded batch.
        batch_size (`int`): Rows of one batch.
    """
    widest = 0.0
    for start in range(0, len(rows), batch_size):
        batch = collate(list(rows[start : start + batch_size]))
        inputs = {name: value.to(expert.device) for name, value in batch.items() if name != "labels"}
        with range_penalty(inputs["attention_mask"]) as penalty:
            expert(**expert_inputs(expert, inputs))
        widest = max(widest, penalty.widest)
    return widest
