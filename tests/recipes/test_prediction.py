# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Outputs for many rows: in their order, whatever their lengths; and what they stand for."""

import pytest
import torch
from transformers import DataCollatorWithPadding, GPT2Config, GPT2ForSequenceClassification

from hf_securerouter.recipes.prediction import Summary, decide, expert_inputs, predict
from hf_securerouter.recipes.tasks import TASKS
from tests.tiny import MAX_POSITIONS, VOCABULARY, noisy_classifier


def test_predictions_come_in_the_order_of_the_rows(model, tokenizer):
    ids = [[2, *([7 + index % 5] * (index % 9)), 3] for index in range(150)]
    rows = [{"input_ids": own, "attention_mask": [1] * len(own), "labels": 0} for own in ids]
    logits, router = predict(model, rows, DataCollatorWithPadding(tokenizer), ("logits", "router_logits"))
    for index in (0, 77, 149):
        alone = model(torch.tensor([ids[index]]))
        torch.testing.assert_close(logits[index], alone.logits[0])
        torch.testing.assert_close(router[index], alone.router_logits[0])
    (summaries,) = predict(Summary(model), rows, DataCollatorWithPadding(tokenizer), ("summary",))
    torch.testing.assert_close(model.router(summaries), router)


def test_a_decision_is_a_class_or_a_value():
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    assert decide(TASKS["mnli"], logits).tolist() == [[1, 0]]
    assert decide(TASKS["stsb"], logits[..., :1]).tolist() == [[0.0, 3.0]]


def gpt2_classifier():
    """It takes `token_type_ids`, and looks them up among its words."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": MAX_POSITIONS, "vocab_size": len(VOCABULARY)}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, pad_token_id=0, num_labels=2)).eval()


@pytest.mark.parametrize("make", [gpt2_classifier, lambda: noisy_classifier("roberta", 16, 2)])
def test_an_expert_reads_token_types_only_where_it_reads_them_in_a_pool(make, tokenizer):
    model, ids = make(), [2, 7, 8, 3, 9, 3]
    row = {"input_ids": ids, "attention_mask": [1] * 6, "token_type_ids": [0, 0, 0, 0, 1, 1], "labels": 0}
    (logits,) = predict(model, [row], DataCollatorWithPadding(tokenizer))
    torch.testing.assert_close(logits, model(torch.tensor([ids])).logits.detach())


def test_only_an_expert_itself_loses_token_types(model):
    batch = {"input_ids": torch.ones(1, 2, dtype=torch.long), "token_type_ids": torch.ones(1, 2, dtype=torch.long)}
    for other in (model, Summary(model), noisy_classifier("bert", 16, 2)):
        assert expert_inputs(other, batch).keys() == batch.keys()
    assert expert_inputs(gpt2_classifier(), batch).keys() == {"input_ids"}
