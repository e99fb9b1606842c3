# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts that learn from a larger one."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_securerouter.losses import distillation_loss, layer_loss
from hf_securerouter.range_penalty import range_penalty
from hf_securerouter.recipes.data import perturb
from hf_securerouter.recipes.prediction import predict


def expert_loss(model, batch):
    """What an expert trains on: its own task loss, or that and its teacher's answers where the batch has them; and the
    loss that it finds itself, if any."""
    batch = dict(batch)
    teacher = batch.pop("teacher_logits", None)
    labels = batch.pop("labels")
    output = model(**batch)
    config = getattr(model, "module", model).config
    loss = distillation_loss(output.logits, labels, teacher, config.problem_type)
    return (loss if output.loss is None else loss + output.loss), output


def distillation_rows(rows, teacher, collate, task, args, special_ids):
    """Rows with the teacher's answers, and perturbed copies that only the teacher has labelled."""
    copies = perturb(rows, args.perturbed_copies, special_ids, args.seed)
    logits = _answered_together(teacher, rows + copies, collate)
    for index in range(len(rows), len(logits)):
        answer = logits[index]
        copies[index - len(rows)]["labels"] = answer.item() if task.regression else answer.argmax().item()
    return [row | {"teacher_logits": own.tolist()} for row, own in zip(rows + copies, logits, strict=True)]


def _answered_together(model, rows, collate):
    """Logits for all rows in every process, each of which computes its part of them."""
    state = PartialState()
    first, step = state.process_index, state.num_processes
    parts = gather_object(predict(model, rows[first::step], collate))
    logits = torch.empty(len(rows), parts[0].shape[1])
    for index, part in enumerate(parts):
        logits[index::step] = part
    return logits


RANGE_WEIGHT = 10.0  # of the range penalty


class Follower(nn.Module):
    """An expert that learns from an exact one of its shape; `loss` is what its layers differ by.

    Inputs: token ids, mask and token types of shape (B, T). Output: `loss`, a scalar, and `logits` of shape (B, C).
    """

    def __init__(self, expert, exact):
        super().__init__()
        exact.set_attn_implementation("eager")  # the others give no attention
        if expert.expert_mpc["softmax"] == "exact" and expert.expert_mpc["precision"] == "full":
            expert.set_attn_implementation("eager")
        expert.get_input_embeddings().requires_grad_(False)  # shares begin behind them
        for module in expert.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # rounding is noise enough
        self.expert, self.exact = expert, exact.requires_grad_(False)
        self.config = expert.config

    def train(self, mode=True):
        super().train(mode)
        self.exact.eval()
        return self

    def forward(self, attention_mask, **inputs):
        inputs |= {"attention_mask": attention_mask, "output_hidden_states": True, "output_attentions": True}
        with range_penalty(attention_mask) as penalty:
            own = self.expert(**inputs)
        with torch.no_grad():
            target = self.exact(**inputs)
        attentions = own.attentions, target.attentions
        if self.expert.config.num_attention_heads != self.exact.config.num_attention_heads:
            attentions = (), ()  # hidden states have to do
        loss = layer_loss(own.hidden_states, target.hidden_states, *attentions, attention_mask)
        if self.expert.expert_mpc["precision"] != "full":
            loss = loss + RANGE_WEIGHT * penalty()
        return SequenceClassifierOutput(loss=loss, logits=own.logits)
