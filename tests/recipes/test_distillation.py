# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Distillation: a copy comes nearer to the exact expert, and values beyond their bounds are seen."""

import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.recipes.distillation import Follower, distillation_rows, expert_loss, widest_value
from hf_securerouter.recipes.experts import load_expert
from hf_securerouter.recipes.tasks import TASKS
from tests.recipes.test_prediction import gpt2_classifier
from tests.tiny import moe_classifier, noisy_classifier


REDUCED = {"hidden_act": "exact", "softmax": "exact", "precision": "reduced"}
FRIENDLY = {"hidden_act": "quadratic", "softmax": "2quad", "precision": "reduced"}


@pytest.mark.parametrize("functions", [REDUCED, FRIENDLY])
def test_a_follower_comes_nearer_to_the_exact_expert(made, two_experts, functions):
    _, exact = two_experts
    expert = load_expert(made / "checkpoint")
    use_functions(expert, **functions)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in expert.base_model.encoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    words = expert.get_input_embeddings().weight.clone()
    follower = Follower(expert, exact).train()
    assert expert.training and not exact.training
    batch = {"input_ids": torch.randint(3, 20, (8, 12)), "attention_mask": torch.ones(8, 12, dtype=torch.int64)}
    batch["attention_mask"][:4, 9:] = 0
    before = follower.eval()(**batch).loss.item()
    optimizer = torch.optim.Adam([weight for weight in follower.parameters() if weight.requires_grad], lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        follower(**batch).loss.backward()
        optimizer.step()
    assert follower(**batch).loss.item() < 0.7 * before
    assert all(weight.grad is None for weight in exact.parameters())
    assert torch.equal(expert.get_input_embeddings().weight, words)
    assert not any(module.p for module in expert.modules() if isinstance(module, torch.nn.Dropout))


def test_a_mixture_keeps_its_load_balanced():
    mixture = moe_classifier(hidden_dropout_prob=0.0, router_aux_loss_coef=3.0, router_z_loss_coef=2.0).train()
    mixture.config.problem_type = "single_label_classification"
    batch = {"input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]), "labels": torch.tensor([0, 1])}
    batch["attention_mask"] = (batch["input_ids"] > 0).long()
    torch.testing.assert_close(expert_loss(mixture, batch)[0], mixture(**batch).loss)


def rows_of(count):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 20, (count, 7), generator=generator).tolist()
    return [{"input_ids": own, "attention_mask": [1] * 7, "labels": index % 2} for index, own in enumerate(ids)]


def test_only_the_teacher_labels_perturbed_copies(two_experts, tokenizer):
    rows, collate = rows_of(6), DataCollatorWithPadding(tokenizer)
    found = distillation_rows(rows, two_experts[1], collate, TASKS["mrpc"], 2, set(tokenizer.all_special_ids), 0)
    assert len(found) == 18 and [row["labels"] for row in found[:6]] == [0, 1] * 3
    for row in found[6:]:
        assert row["labels"] == max((0, 1), key=row["teacher_logits"].__getitem__)
    with torch.no_grad():
        expected = two_experts[1](torch.tensor([found[7]["input_ids"]])).logits[0]
    torch.testing.assert_close(torch.tensor(found[7]["teacher_logits"]), expected)


def test_a_loss_of_the_model_itself_is_added(two_experts):
    batch = {"input_ids": torch.tensor([[2, 7, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    batch |= {"labels": torch.tensor([1])}
    own, exact = load_expert(two_experts[1].name_or_path), two_experts[1]
    own.config.problem_type = "single_label_classification"
    with torch.no_grad():
        own.base_model.encoder.layer[0].output.dense.weight.mul_(0.5)
    loss, output = expert_loss(Follower(own, exact).eval(), batch)
    labels_alone, _ = expert_loss(own, batch)
    assert output.loss > 0 and loss.item() == pytest.approx(labels_alone.item() + output.loss.item(), rel=1e-5)


def test_the_widest_value_is_that_of_all_batches(tokenizer):
    expert = noisy_classifier("bert", width=16, heads=4)
    use_functions(expert, precision="reduced")
    rows, collate = rows_of(10), DataCollatorWithPadding(tokenizer)
    alone = [widest_value(expert, [row], collate) for row in rows]
    order = sorted(range(10), key=lambda index: alone[index])
    for places in (order, order[::-1]):  # the widest row last, and first
        found = widest_value(expert, [rows[index] for index in places], collate, batch_size=3)
        assert found == pytest.approx(max(alone), rel=1e-5)
    assert min(alone) < 0.99 * max(alone)


def test_token_types_change_no_loss_of_an_expert_that_reads_none_in_a_pool():
    expert = gpt2_classifier()
    expert.config.problem_type = "single_label_classification"
    batch = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    batch |= {"labels": torch.tensor([1])}
    typed = batch | {"token_type_ids": torch.tensor([[0, 0, 1, 1]])}
    torch.testing.assert_close(expert_loss(expert, typed)[0], expert_loss(expert, batch)[0])


def test_token_types_reach_no_copy_of_an_expert_that_reads_none_in_a_pool(tokenizer):
    expert, exact = (noisy_classifier("roberta", width=16, heads=4) for _ in range(2))
    use_functions(expert, precision="reduced")
    expert.config.problem_type = "single_label_classification"
    row = {"input_ids": [2, 7, 8, 3], "attention_mask": [1] * 4, "labels": 0}
    typed, collate = row | {"token_type_ids": [0, 0, 1, 1]}, DataCollatorWithPadding(tokenizer)
    assert widest_value(expert, [typed], collate) == widest_value(expert, [row], collate)
    found = [expert_loss(Follower(expert, exact).eval(), dict(collate([own])))[0] for own in (row, typed)]
    torch.testing.assert_close(*found)
