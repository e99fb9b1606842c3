# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The cascade: the less sure the cheapest expert is, the sooner the costliest one answers, and no other does."""

import numpy as np
import pytest
import torch

from hf_securerouter.recipes.cascade import cascade_scores
from hf_securerouter.recipes.tasks import TASKS
from hf_securerouter.reports import PoolAnswers, routed_curve
from hf_securerouter.routing import choose_expert


@pytest.mark.parametrize("price", [0.0, 0.05, 0.3, 10.0])
def test_the_costliest_answers_where_the_cheapest_is_not_sure(price):
    costs = [6.0, 1.0, 3.0]
    logits = torch.randn(200, 3, 2, generator=torch.Generator().manual_seed(0))
    sure = logits[:, 1].softmax(dim=-1).amax(dim=-1)
    chosen = choose_expert(cascade_scores(TASKS["sst2"], logits, costs), costs, price)
    assert torch.equal(chosen, torch.where(sure < 1 - 5 * price, 0, 1))


def test_values_far_from_the_mean_count_as_sure():
    logits = torch.tensor([[[1.0], [9.0]], [[3.0], [0.0]], [[2.0], [5.0]], [[2.5], [5.0]], [[6.5], [5.0]]])
    found = cascade_scores(TASKS["stsb"], logits, [1.0, 2.0])
    assert found[:, 1].eq(1).all() and found[:, 0].tolist() == pytest.approx([2 / 3.5, 0, 1 / 3.5, 0.5 / 3.5, 1])


def test_its_curve_goes_from_the_costliest_to_the_cheapest():
    logits = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(1))
    answers = logits.argmax(dim=2).numpy()
    pool = PoolAnswers(
        answers, answers[:, 2], answers, [1.0, 2.0, 4.0], [1.0, 3.0, 5.0], answers[:, 2], 4.0,
        lambda given, right: float(np.mean(given == right)),
    )  # fmt: skip
    curve = routed_curve(pool, cascade_scores(TASKS["sst2"], logits, [1.0, 2.0, 4.0]))
    assert curve[-1] == (1.25, 1.0) and curve[0][0] == 0.25 and len(curve) == 51
