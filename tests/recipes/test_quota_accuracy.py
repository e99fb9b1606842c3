# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Accuracy under quotas: shares are kept in every batch, and the script reads whatever a pool was trained on."""

import json

import pytest
import quota_accuracy as script
import torch
from transformers import DataCollatorWithPadding

from hf_securerouter import SecureRouterValueError
from hf_securerouter.recipes.quota_accuracy import answers, quota_accuracies, quota_shares


def test_a_batch_is_served_in_the_same_shares():
    scores = torch.tensor([[0.5, 0.9]] * 6 + [[0.5, 0.4]] * 6)  # half of the rows are worth the larger expert
    right = torch.tensor([[False, True]] * 6 + [[True, True]] * 6)
    found = list(quota_accuracies(scores, right, [1.0, 4.0], 0.01, [0.5, 0.5], [12, 4], 3, 0))
    assert [line["batch"] for line in found] == ["unconstrained", "expert 0 alone", "expert 1 alone", 12, 4]
    assert [line["accuracy"] for line in found[:4]] == [1.0, 0.5, 1.0, 1.0]
    assert [line["cost"] for line in found] == [2.5, 1.0, 4.0, 2.5, 2.5]
    assert found[4]["quotas"] == [2, 2] and 0.5 < found[4]["accuracy"] < 1


def test_shares_are_those_of_the_quotas(model):
    model.config.quotas = [3, 0, 1]
    assert quota_shares(model) == [0.75, 0, 0.25]
    model.config.quotas = None
    with pytest.raises(SecureRouterValueError, match="`quotas` should be set in the config of the pool"):
        quota_shares(model)


def test_a_regression_has_no_right_answers(model):
    model.config.problem_type = "regression"
    with pytest.raises(SecureRouterValueError, match="`model` is a regression"):
        quota_shares(model)


def test_every_expert_answers(model, tokenizer):
    rows = [{"input_ids": [2, 7 + n, 3], "attention_mask": [1] * 3, "labels": 0} for n in range(5)]
    scores, classes = answers(model, rows, DataCollatorWithPadding(tokenizer))
    ids = torch.tensor([row["input_ids"] for row in rows])
    torch.testing.assert_close(scores, model(ids).router_logits.detach())
    for expert in range(3):
        found = model.run_experts({"input_ids": ids}, torch.full((5,), expert)).argmax(dim=1)
        assert torch.equal(classes[:, expert], found)


@pytest.mark.parametrize("own", [False, True])
def test_the_script_prints_a_line_for_each_size(model, tokenizer, tmp_path, capsys, own):
    model.config.quotas = [2, 1, 1]
    model.config.max_length = 16
    model.save_pretrained(tmp_path / "pool")
    tokenizer.save_pretrained(tmp_path / "pool")
    column, labels = ("text", model.config.id2label) if own else ("sentence", (0, 1))
    rows = [{column: f"the film is {word}", "label": labels[n % 2]} for n, word in enumerate(["bad", "good"] * 4)]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = () if own else ("--task_name", "sst2")
    data = (*task, "--validation_file", str(tmp_path / "dev.jsonl"))
    script.main(["--model", str(tmp_path / "pool"), *data, "--batch_sizes", "4", "--shuffles", "2"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["batch"] for line in found][0] == "unconstrained" and found[-1]["quotas"] == [2, 1, 1]
