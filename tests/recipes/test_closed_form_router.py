# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The router in closed form."""

import numpy as np
import pytest
import torch

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.losses import target_utilities
from hf_securerouter.metrics import glue_score
from hf_securerouter.recipes.closed_form_router import (
    fit_closed_form_router,
    margins,
    ridge,
    score_gains,
    score_utilities,
)
from tests.tiny import pool_model


def closeness(predictions, references):
    return -np.square(predictions - references).mean()


def rows_of(count, labels, seed=0):
    """Summaries in which a direction holds the first expert's margin, an expert that knows more, and labels."""
    generator = torch.Generator().manual_seed(seed)
    summaries = torch.randn(count, 16, generator=generator)
    margin = summaries[:, 3] + 0.5 * summaries[:, 7]
    likely = (margin.abs() * 2).sigmoid()  # that the first expert is right
    right = torch.rand(count, generator=generator) < likely
    answer = (margin > 0).long()
    label = torch.where(right, answer, 1 - answer)
    own = torch.stack([-margin, margin], dim=1)
    best = torch.nn.functional.one_hot(label, 2) * 6.0
    if labels == 1:
        own, best, label = margin[:, None], margin[:, None] + (1 - right.float())[:, None], margin + 1 - right.float()
    logits = torch.stack([own, best], dim=1)
    return [
        {"router_summary": a, "expert_logits": b, "labels": c}
        for a, b, c in zip(summaries.tolist(), logits.tolist(), label.tolist(), strict=True)
    ], likely


def test_ridge_finds_a_line():
    inputs = torch.randn(4000, 3) + 2  # the intercept is not the mean of the targets
    weights, bias = ridge(inputs, inputs @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3, 0.1)
    torch.testing.assert_close(weights.squeeze(1), torch.tensor([1.0, -2.0, 0.5]).double() / 1.1, atol=0.05, rtol=0)
    expected = torch.tensor([3 + 2 * (1 - 2 + 0.5) * (1 - 1 / 1.1)])  # what the penalty leaves out, at the mean
    torch.testing.assert_close(bias, expected.double(), atol=0.15, rtol=0)


def test_margins_know_no_constant():
    logits = torch.randn(5, 3)
    torch.testing.assert_close(margins(logits + 7), margins(logits))
    assert margins(logits[:, :2]).shape == (5, 1) and torch.equal(margins(logits[:, :1]), logits[:, :1])


@pytest.fixture
def pool():
    return pool_model(
        ("bert", "bert"),
        router_config=None,
        router_shares_expert=0,
        router_hidden_size=40,  # two readings of 14 ramps, and some to spare
        router_objective="utility",
        problem_type="single_label_classification",
        num_labels=2,
    )


def test_a_few_rows_tell_when_the_small_expert_is_right(pool):
    rows, _ = rows_of(600, 2)
    fit_closed_form_router(pool, rows, glue_score("sst2"))
    unseen, likely = rows_of(2000, 2, seed=1)
    found = pool.router(torch.tensor([row["router_summary"] for row in unseen]))
    correlation = torch.corrcoef(torch.stack([found[:, 0], likely]))[0, 1]
    assert correlation > 0.8
    assert (found[:, 1] - 1).abs().mean() < 0.05  # the other one is always right, and sure


def test_of_many_classes_the_principal_margins_are_read(pool):
    pool.config.num_labels, classes = 12, 12  # 14 ramps for each would be more than the hidden units
    generator = torch.Generator().manual_seed(0)
    summaries = torch.randn(900, 16, generator=generator)
    sure = summaries[:, 3]
    own = torch.randn(900, classes, generator=generator) * 0.1
    own[:, 0] += 4 * sure
    labels = torch.where(sure > 0, 0, torch.randint(classes, (900,), generator=generator))
    best = torch.nn.functional.one_hot(labels, classes) * 6.0
    rows = [
        {"router_summary": a, "expert_logits": b, "labels": c}
        for a, b, c in zip(summaries.tolist(), torch.stack([own, best], dim=1).tolist(), labels.tolist(), strict=True)
    ]
    fit_closed_form_router(pool, rows, glue_score("mnli"))
    found = pool.router(summaries)[:, 0]
    assert found[sure > 1].mean() > 0.85 and found[sure < -1].mean() < 0.4


def test_a_regression_is_fitted_too(pool):
    pool.config.problem_type = "regression"
    rows, _ = rows_of(400, 1)
    fit_closed_form_router(pool, rows, closeness)
    unseen, likely = rows_of(2000, 1, seed=1)
    found = pool.router(torch.tensor([row["router_summary"] for row in unseen]))
    assert torch.corrcoef(torch.stack([found[:, 0], likely]))[0, 1] > 0.85


@pytest.mark.parametrize(
    ("score", "labels", "problem_type"),
    [
        (glue_score("mnli"), torch.randint(3, (40,), generator=torch.Generator().manual_seed(1)), None),
        (closeness, torch.randn(40, generator=torch.Generator().manual_seed(1)), "regression"),
    ],
)
def test_of_a_mean_the_utilities_are_those_of_single_answers(score, labels, problem_type):
    problem_type = problem_type or "single_label_classification"
    outputs = 1 if problem_type == "regression" else 3
    logits = torch.randn(40, 3, outputs, generator=torch.Generator().manual_seed(0))
    found = score_utilities(logits, labels, problem_type, score)
    expected = target_utilities(logits, labels, problem_type).double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_several_labels_at_once_have_no_score_of_single_answers():
    with pytest.raises(SecureRouterValueError, match="`problem_type` is 'multi_label_classification'"):
        score_utilities(torch.zeros(4, 2, 4), torch.zeros(4, 4), "multi_label_classification", glue_score("sst2"))


def test_under_f1_a_positive_answer_pays_from_half_of_f1_on():
    score = glue_score("mrpc")
    references = np.random.default_rng(0).integers(0, 2, 2000)
    own = np.where(np.random.default_rng(1).random(2000) < 0.8, references, 1 - references)
    own[0] = 0
    answers = np.stack([own, own], axis=1)
    answers[0, 0] = 1
    worth = score(own, references) / 2  # about 0.4: where accuracy asks for 0.5
    for likely, pays in ((worth - 0.02, False), (worth + 0.02, True)):
        weights = np.tile([1 - likely, likely], (2000, 1))
        gain = score_gains(answers, own, references, np.tile([0, 1], (2000, 1)), weights, score)[0]
        assert (gain[0] > 0) == pays and gain[1] == 0


def test_the_score_decides_who_is_better(pool):
    rows, _ = rows_of(300, 2)
    unseen = torch.tensor([row["router_summary"] for row in rows_of(50, 2, seed=1)[0]])
    leads = []
    for sign in (1, -1):
        fit_closed_form_router(
            pool, rows, lambda predictions, references, sign=sign: sign * (predictions == references).mean()
        )
        leads.append(pool.router(unseen).diff(dim=1))
    torch.testing.assert_close(leads[0], -leads[1], atol=1e-4, rtol=0)
    assert leads[0].mean() > 0.05
