# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Routers that are trained on cached answers: nothing else of the pool changes."""

import pytest
import run_glue_no_trainer
import torch
from transformers import DataCollatorWithPadding

from hf_securerouter.recipes.router_training import summarize_rows, train_router, with_answers
from hf_securerouter.recipes.tasks import TASKS
from tests.tiny import pool_model


class Workspace:
    def __init__(self, folder, tokenizer):
        self.folder, self.tokenizer, self.collate = folder, tokenizer, DataCollatorWithPadding(tokenizer)


@pytest.fixture
def rows():
    ids = [[2, 7, 8, 3], [2, 9, 10, 11, 3]] * 20
    plain = [{"input_ids": own, "attention_mask": [1] * len(own), "labels": n % 2} for n, own in enumerate(ids)]
    return with_answers(plain, torch.randn(40, 2, 2))


@pytest.fixture
def train(tmp_path, tokenizer):
    loop = run_glue_no_trainer.Loop(run_glue_no_trainer.LoopArguments("out", use_cpu=True))
    return lambda *step: loop(Workspace(tmp_path, tokenizer), *step)


@pytest.mark.parametrize("objective", ["gumbel", "utility"])
def test_only_the_router_is_trained(rows, train, tokenizer, objective):
    model = pool_model(("bert", "bert"), router_objective=objective, problem_type="single_label_classification")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = []

    def recording_train(name, part, *rest):
        trained.append({name for name, parameter in part.named_parameters() if parameter.requires_grad})
        train(name, part, *rest)

    found = train_router(model, rows, TASKS["mrpc"], DataCollatorWithPadding(tokenizer), recording_train, 2, 1e-2)
    assert trained == [{name for name in before if name.startswith("router.")}]
    changed = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert changed == {"router"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert found.keys() == model.router.state_dict().keys()


def test_a_router_on_a_shared_encoder_is_fitted_without_a_loop(rows, tokenizer):
    model = pool_model(
        ("bert", "bert"),
        router_config=None,
        router_shares_expert=0,
        router_hidden_size=40,
        router_objective="utility",
        problem_type="single_label_classification",
    )
    collate = DataCollatorWithPadding(tokenizer)
    before = model.router.out_proj.weight.clone()
    train_router(model, rows, TASKS["mrpc"], collate, None, 2, 1e-2)
    assert not torch.equal(model.router.out_proj.weight, before)
    summary = torch.tensor([row["router_summary"] for row in summarize_rows(model, rows[:1], collate)])
    with torch.no_grad():
        expected = model(torch.tensor([rows[0]["input_ids"]])).router_logits
    torch.testing.assert_close(model.router(summary).detach(), expected)
