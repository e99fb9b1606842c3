# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Outputs for many rows: in their order, whatever their lengths; and what they stand for."""

import torch
from transformers import DataCollatorWithPadding

from hf_securerouter.recipes.prediction import Summary, decide, predict
from hf_securerouter.recipes.tasks import TASKS


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
