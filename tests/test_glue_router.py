# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The router in closed form."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import pool_model


sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from glue_router import fit_router, margins, ridge


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
    weights, bias = ridge(inputs, inputs @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3)
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
        router_hidden_size=40,
        router_objective="utility",
        problem_type="single_label_classification",
        num_labels=2,
    )


def test_a_few_rows_tell_when_the_small_expert_is_right(pool):
    rows, _ = rows_of(600, 2)
    fit_router(pool, rows)
    unseen, likely = rows_of(2000, 2, seed=1)
    found = pool.router(torch.tensor([row["router_summary"] for row in unseen]))
    correlation = torch.corrcoef(torch.stack([found[:, 0], likely]))[0, 1]
    assert correlation > 0.8
    assert (found[:, 1] - 1).abs().mean() < 0.05  # the other one is always right, and sure


def test_a_regression_is_fitted_too(pool):
    pool.config.problem_type = "regression"
    rows, _ = rows_of(400, 1)
    fit_router(pool, rows)
    unseen, likely = rows_of(2000, 1, seed=1)
    found = pool.router(torch.tensor([row["router_summary"] for row in unseen]))
    assert torch.corrcoef(torch.stack([found[:, 0], likely]))[0, 1] > 0.85
