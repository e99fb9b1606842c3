# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Equations 1 to 6, each against numbers worked out by hand, and the utilities."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_securerouter import SecureRouterValueError
from hf_securerouter.losses import (
    balance_loss,
    believed_utilities,
    check_labels,
    cost_loss,
    distillation_loss,
    expected_cost,
    expert_loads,
    expert_utilities,
    fit_temperature,
    infer_problem_type,
    layer_loss,
    mix_experts,
    task_loss,
    utility_loss,
)


EXPERT_LOGITS = torch.tensor([[[1.0, 3.0], [5.0, -1.0]], [[0.0, 2.0], [4.0, 4.0]]])
WEIGHTS = torch.tensor([[0.25, 0.75], [1.0, 0.0]])


def test_mixture_is_the_weighted_sum_of_logits():
    torch.testing.assert_close(mix_experts(EXPERT_LOGITS, WEIGHTS), torch.tensor([[4.0, 0.0], [0.0, 2.0]]))


def test_mixture_with_one_hot_weights_is_the_chosen_expert():
    one_hot = torch.eye(2)
    torch.testing.assert_close(mix_experts(EXPERT_LOGITS, one_hot)[1], EXPERT_LOGITS[1, 1])


def test_mixture_keeps_the_dtype_of_the_experts():
    assert mix_experts(EXPERT_LOGITS.bfloat16(), WEIGHTS).dtype is torch.bfloat16


def test_cross_entropy():
    loss = task_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([0]), "single_label_classification")
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_squared_error(shape):
    loss = task_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 1.0]).view(shape), "regression")
    assert loss.item() == pytest.approx(5.0)


def test_binary_cross_entropy():
    logits = torch.tensor([[0.0, math.log(3)]])
    loss = task_loss(logits, torch.tensor([[1.0, 0.0]]), "multi_label_classification")
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_half_precision_logits_give_a_float32_loss():
    loss = task_loss(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([1]), "single_label_classification")
    assert loss.dtype is torch.float32 and loss.item() == pytest.approx(math.log(2), rel=1e-6)


def test_loads_are_sums_over_the_batch():
    torch.testing.assert_close(expert_loads(WEIGHTS), torch.tensor([1.25, 0.75]))


def test_balance_loss_is_the_squared_coefficient_of_variation():
    # Loads 1.25 and 0.75: mean 1, variance 0.0625.
    assert balance_loss(WEIGHTS).item() == pytest.approx(0.0625)


@given(experts=st.integers(1, 6), batch=st.integers(1, 8))
def test_balance_loss_is_zero_when_even_and_most_when_one_serves_all(experts, batch):
    assert balance_loss(torch.full((batch, experts), 1 / experts)).item() == pytest.approx(0.0, abs=1e-6)
    alone = torch.zeros(batch, experts)
    alone[:, 0] = 1.0
    assert balance_loss(alone).item() == pytest.approx(experts - 1, abs=1e-5)


@given(scores=arrays("float32", (5, 4), elements=st.floats(-5, 5, width=32)), factor=st.integers(2, 5))
def test_balance_loss_does_not_depend_on_how_often_the_batch_repeats(scores, factor):
    weights = torch.from_numpy(scores).softmax(dim=-1)
    assert balance_loss(weights.repeat(factor, 1)).item() == pytest.approx(balance_loss(weights).item(), abs=1e-5)


def test_expected_cost_and_its_mean():
    costs = torch.tensor([2.0, 10.0])
    torch.testing.assert_close(expected_cost(WEIGHTS, costs), torch.tensor([8.0, 2.0]))
    assert cost_loss(WEIGHTS, costs).item() == pytest.approx(5.0)


@given(
    scores=arrays("float32", (4, 3), elements=st.floats(-10, 10, width=32)),
    costs=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
)
def test_expected_cost_lies_between_the_cheapest_and_the_costliest(scores, costs):
    expected = expected_cost(torch.from_numpy(scores).softmax(dim=-1), torch.tensor(costs))
    assert (expected >= min(costs) * (1 - 1e-4)).all() and (expected <= max(costs) * (1 + 1e-4)).all()


def test_utility_of_a_class_is_being_right():
    utilities = expert_utilities(EXPERT_LOGITS, torch.tensor([1, 1]), "single_label_classification")
    torch.testing.assert_close(utilities, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_utility_in_regression_is_minus_the_squared_error():
    logits = torch.tensor([[[1.0], [4.0]]])
    utilities = expert_utilities(logits, torch.tensor([3.0]), "regression")
    torch.testing.assert_close(utilities, torch.tensor([[-4.0, -1.0]]))


def test_utility_of_several_labels_is_the_share_that_is_right():
    utilities = expert_utilities(EXPERT_LOGITS, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "multi_label_classification")
    torch.testing.assert_close(utilities, torch.tensor([[0.5, 1.0], [1.0, 0.5]]))


def test_utilities_carry_no_gradient():
    logits = EXPERT_LOGITS.clone().requires_grad_()
    assert not expert_utilities(logits, torch.tensor([3.0, 1.0, 0.0, 1.0]).view(2, 2), "regression").requires_grad


def test_utility_loss_is_least_at_the_probability_of_being_right():
    utilities = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    at = {guess: utility_loss(torch.full((4, 1), guess), utilities).item() for guess in (0.65, 0.75, 0.85, 1.0)}
    assert min(at, key=at.get) == 0.75 and at[0.75] == pytest.approx(0.75 * 0.25)


@pytest.mark.parametrize(
    "labels, num_labels, expected",
    [
        (torch.tensor([1.0]), 1, "regression"),
        (torch.tensor([1]), 1, "regression"),
        (torch.tensor([1]), 3, "single_label_classification"),
        (torch.tensor([[1.0, 0.0]]), 2, "multi_label_classification"),
        (torch.tensor([True]), 2, "single_label_classification"),
        (torch.tensor([[True], [False]]), 2, "single_label_classification"),
        (torch.tensor([[True, False]]), 2, "multi_label_classification"),
    ],
)
def test_problem_type_follows_the_labels(labels, num_labels, expected):
    assert infer_problem_type(labels, num_labels) == expected


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_classes_of_any_integer_type_are_taken_as_they_are_meant(dtype):
    classes = torch.tensor([1, 0])
    for shape in ((2,), (2, 1)):
        found = check_labels(classes.to(dtype).view(shape), 2, 2, "single_label_classification")
        assert found.dtype == torch.int64 and found.flatten().tolist() == [1, 0]
    logits = torch.randn(2, 2)
    expected = task_loss(logits, torch.eye(2), "multi_label_classification")
    assert task_loss(logits, torch.eye(2).to(dtype), "multi_label_classification") == expected


@pytest.mark.parametrize("shape", [(2, 2), (4,)])
def test_values_of_several_outputs_may_come_in_one_row(shape):
    labels, logits = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(shape), torch.randn(2, 2)
    for problem_type in ("regression", "multi_label_classification"):
        assert task_loss(logits, labels, problem_type) == task_loss(logits, labels.view(2, 2), problem_type)


def test_weights_of_classes_count_each_example_by_its_class():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 2, 0])
    own = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = torch.tensor([2.0, 5.0, 1.0])
    found = task_loss(logits, labels, "single_label_classification", [2, 5, 1])
    torch.testing.assert_close(found, (own * weights[labels]).sum() / weights[labels].sum())

    several = torch.nn.functional.one_hot(labels, 3).float()
    own = torch.nn.functional.binary_cross_entropy_with_logits(logits, several, reduction="none")
    found = task_loss(logits, several, "multi_label_classification", [2, 5, 1])
    torch.testing.assert_close(found, (own * torch.where(several > 0, weights, 1)).mean())


@pytest.mark.parametrize(
    "labels, problem_type, message",
    [
        (torch.tensor([0, 2]), "single_label_classification", r"from 0 to 1, got \[2\]"),
        (torch.tensor([0, -1]), "single_label_classification", r"got \[-1\]"),
        (torch.tensor([0, 1, 1]), "single_label_classification", "each of the 2 examples"),
        (torch.tensor([0.0, 1.0]), "single_label_classification", "float32"),
        (torch.tensor([0.0, 1.0]), "multi_label_classification", "2 values for each.*pass them as integers"),
        (torch.tensor([0.5]), "regression", "2 values for each"),
        (torch.tensor([[0.5, 1.0], [0.5, torch.nan]]), "regression", r"finite numbers, got \[0.5, nan\] in row 1"),
        (torch.tensor([[torch.inf, 1.0], [0.5, 1.0]]), "multi_label_classification", "in row 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, problem_type, message):
    with pytest.raises(SecureRouterValueError, match=message):
        check_labels(labels, 2, 2, problem_type)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression", "multi_label_classification"])
def test_believed_utilities_are_the_mean_over_labels_that_the_experts_predict(problem_type):
    torch.manual_seed(0)
    logits, draws = torch.randn(1, 2, 3), 40_000
    belief = (logits[:, 0] + logits[:, 1]).expand(draws, -1) / 2
    labels = {
        "single_label_classification": torch.multinomial(belief[0].softmax(dim=0), draws, replacement=True),
        "regression": belief + torch.randn(draws, 3),
        "multi_label_classification": torch.bernoulli(belief.sigmoid()),
    }[problem_type]
    drawn = expert_utilities(logits.expand(draws, -1, -1), labels, problem_type).mean(dim=0)
    believed = believed_utilities(logits, problem_type)[0]
    shared = 1.0 if problem_type == "regression" else 0.0  # the variance
    torch.testing.assert_close(drawn, believed - shared, atol=0.02, rtol=0)


def test_a_temperature_undoes_overconfidence():
    torch.manual_seed(0)
    honest = 2 * torch.randn(4000, 3)
    labels = torch.multinomial(honest.softmax(dim=1), 1).squeeze(1)
    assert fit_temperature(honest, labels, "single_label_classification") == pytest.approx(1, rel=0.11)
    assert fit_temperature(3 * honest, labels, "single_label_classification") == pytest.approx(3, rel=0.11)
    assert fit_temperature(honest, labels.float(), "regression") == 1


def test_distillation_is_half_from_the_labels_and_half_from_the_teacher():
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([0])
    certain = torch.tensor([[-50.0, 50.0]])
    found = distillation_loss(logits, labels, certain, "single_label_classification").item()
    assert found == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, rel=1e-5)
    alone = distillation_loss(logits, labels, None, "single_label_classification").item()
    assert alone == pytest.approx(math.log(4), rel=1e-5)


def test_distillation_of_a_regression_and_of_several_labels():
    values = distillation_loss(torch.tensor([[1.0]]), torch.tensor([3.0]), torch.tensor([[2.0]]), "regression")
    assert values.item() == pytest.approx((4 + 1) / 2)
    several = distillation_loss(
        torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[50.0, 50.0]]), "multi_label_classification"
    )
    assert several.item() == pytest.approx(math.log(2))


def test_layers_that_agree_but_for_padding_lose_nothing():
    torch.manual_seed(0)
    states, attentions = torch.randn(3, 2, 4, 8), torch.rand(2, 2, 3, 4, 4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    other, weights = states.clone(), attentions.clone()
    other[0] += 1  # embeddings are no layer
    other[:, mask == 0] += 1
    weights.transpose(2, 3)[:, mask == 0] += 1
    assert layer_loss(other, states, weights, attentions, mask) == 0
    # Twice the teacher's: an error of its whole mean square, for states and for attention.
    found = layer_loss(2 * states, states, 2 * attentions, attentions, mask)
    torch.testing.assert_close(found, torch.tensor(2.0))
    with pytest.raises(
        SecureRouterValueError, match="`hidden_states` of 1 layers, .*cannot follow `teacher_states` of 2"
    ):
        layer_loss(states[:2], states, attentions[:1], attentions, mask)
