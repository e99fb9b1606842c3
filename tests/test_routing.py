# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Policies: the decision with its ties, lambda for a budget, and quotas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_securerouter import SecureRouterValueError
from hf_securerouter.routing import (
    assign_by_quota,
    choose_expert,
    fill_batch,
    lambda_for_budget,
    lambda_grid,
    quotas_for_batch,
    quotas_for_budget,
    quotas_for_shares,
    serve_by_quota,
)


COSTS = [1.0, 4.0, 10.0]


def test_best_score_wins_without_lambda():
    scores = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.2, 0.3]])
    assert choose_expert(scores, COSTS, 0.0).tolist() == [2, 0]


def test_lambda_makes_the_cheaper_expert_win():
    scores = torch.tensor([[0.1, 0.2, 0.3]])
    assert [choose_expert(scores, COSTS, price).item() for price in (0.0, 0.02, 0.05)] == [2, 1, 0]


@pytest.mark.parametrize("row, winner", [([0.5, 0.5, 0.5], 0), ([0.1, 0.5, 0.5], 1), ([0.5, 0.1, 0.5], 0)])
def test_of_equal_scores_the_first_wins(row, winner):
    assert choose_expert(torch.tensor([row]), COSTS, 0.0).item() == winner


def test_choice_is_int64_and_float32_throughout():
    # In bfloat16 the three prices would vanish beside the scores.
    chosen = choose_expert(torch.ones(2, 3, dtype=torch.bfloat16), COSTS[::-1], 0.0001)
    assert chosen.dtype is torch.int64 and chosen.tolist() == [2, 2]


@given(scores=arrays("float64", (9, 3), elements=st.floats(0, 1)), budget=st.floats(1.0, 10.0))
def test_lambda_keeps_the_budget(scores, budget):
    scores = torch.from_numpy(scores)
    price = lambda_for_budget(scores, COSTS, budget)
    costs = torch.tensor(COSTS, dtype=torch.float64)
    assert price >= 0 and costs[choose_expert(scores, costs, price)].mean() <= budget


def test_lambda_spends_the_budget():
    scores = torch.tensor([[0.0, 0.1, 0.9], [0.0, 0.1, 0.5], [0.0, 0.1, 0.2]])
    spent = {}
    for budget in (10.0, 7.0, 4.0, 1.0):
        chosen = choose_expert(scores, COSTS, lambda_for_budget(scores, COSTS, budget))
        spent[budget] = torch.tensor(COSTS)[chosen].sum().item()
    assert spent == {10.0: 30.0, 7.0: 21.0, 4.0: 12.0, 1.0: 3.0}


def test_budget_below_the_cheapest_expert_is_refused():
    with pytest.raises(SecureRouterValueError, match="`budget` should be at least 1.0"):
        lambda_for_budget(torch.zeros(1, 3), COSTS, 0.5)


@pytest.mark.parametrize("size, expected", [(1, [3, 2, 1]), (6, [3, 2, 1]), (7, [6, 4, 2])])
def test_quotas_of_a_batch_are_whole_multiples(size, expected):
    assert quotas_for_batch([3, 2, 1], size) == expected


def test_hardest_queries_go_to_the_costliest_expert():
    difficulty = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.7, 0.0])
    cheapest = torch.tensor([0.3, 0.0, 0.6, 0.1, 0.9, 0.2])
    scores = torch.stack([cheapest, torch.full((6,), 5.0), cheapest + difficulty], dim=1)
    assert assign_by_quota(scores, [3, 2, 1], COSTS).tolist() == [0, 2, 1, 0, 1, 0]


def test_costs_give_the_order_of_the_experts():
    difficulty = torch.tensor([0.0, 2.0, 1.0])
    scores = torch.stack([difficulty, torch.zeros(3), torch.full((3,), 5.0)], dim=1)
    assert assign_by_quota(scores, [1, 1, 1], [10.0, 1.0, 4.0]).tolist() == [1, 0, 2]


def test_equally_hard_queries_are_served_in_order():
    assert assign_by_quota(torch.zeros(4, 2), [2, 2], [1.0, 2.0]).tolist() == [1, 1, 0, 0]


@given(data=st.data(), quotas=st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(lambda q: sum(q) > 0))
def test_every_expert_gets_exactly_its_quota(data, quotas):
    shape = (sum(quotas), len(quotas))
    scores = torch.from_numpy(data.draw(arrays("float32", shape, elements=st.floats(-3, 3, width=32))))
    costs = [float(k + 1) for k in range(len(quotas))]
    assigned = assign_by_quota(scores, quotas, costs)
    assert torch.bincount(assigned, minlength=len(quotas)).tolist() == quotas
    order = torch.randperm(shape[0])
    gain = scores[:, -1] - scores[:, 0]
    if gain.unique().numel() == shape[0]:
        assert assign_by_quota(scores[order], quotas, costs).tolist() == assigned[order].tolist()


@pytest.mark.parametrize("quotas", [[1, 1, 1], [2, 2], [-1, 4]])
def test_quotas_that_do_not_fit_the_batch_are_refused(quotas):
    with pytest.raises(SecureRouterValueError, match="`quotas` should be 2 counts that sum to the 3 queries"):
        assign_by_quota(torch.zeros(3, 2), quotas, [1.0, 2.0])


@pytest.mark.parametrize(
    ("shares", "size", "quotas"),
    [((0.5, 1 / 3, 1 / 6), 6, [3, 2, 1]), ((0.5, 0.25, 0.25), 6, [3, 2, 1]), ((0.9, 0.1, 0.0), 4, [4, 0, 0])],
)
def test_quotas_for_shares_come_closest(shares, size, quotas):
    assert quotas_for_shares(shares, size) == quotas


def test_lambda_grid_leads_from_the_best_to_the_cheapest():
    scores = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    grid = lambda_grid(scores, COSTS, 21)
    assert grid[0] == 0.0 and grid == sorted(grid) and len(grid) <= 21
    costs = torch.tensor(COSTS)
    means = [costs[choose_expert(scores, COSTS, price)].mean().item() for price in grid]
    assert means == sorted(means, reverse=True)
    assert means[0] == costs[scores.argmax(dim=1)].mean().item() and means[-1] == 1.0


def test_quotas_spend_the_budget_where_it_is_worth_most():
    # Two of six queries gain from the third expert, and nobody from the second.
    scores = torch.tensor([[0.9, 0.9, 0.9]] * 4 + [[0.1, 0.1, 0.9]] * 2)
    assert quotas_for_budget(scores, COSTS, 10.0, 6) == [4, 0, 2]
    assert quotas_for_budget(scores, COSTS, 2.5, 6) == [5, 0, 1]
    assert quotas_for_budget(scores, COSTS, 1.0, 6) == [6, 0, 0]
    assert quotas_for_budget(scores[:, [2, 0, 1]], [10.0, 1.0, 4.0], 10.0, 6) == [2, 4, 0]


@given(scores=arrays("float64", (9, 3), elements=st.floats(0, 1)), budget=st.floats(1.0, 10.0))
def test_no_quotas_within_the_budget_are_expected_to_do_better(scores, budget):
    scores = torch.from_numpy(scores)

    def expected(quotas):
        chosen = assign_by_quota(scores, quotas, COSTS)
        return scores.gather(1, chosen[:, None]).mean().item()

    found = quotas_for_budget(scores, COSTS, budget, 9)
    everything = [[a, b, 9 - a - b] for a in range(10) for b in range(10 - a)]
    within = [q for q in everything if sum(n * c for n, c in zip(q, COSTS, strict=True)) / 9 <= budget]
    assert found in within
    assert expected(found) == pytest.approx(max(expected(q) for q in within), abs=1e-8)


def test_quotas_below_the_cheapest_expert_are_refused():
    with pytest.raises(SecureRouterValueError, match="`budget` should be at least 1.0"):
        quotas_for_budget(torch.zeros(1, 3), COSTS, 0.5, 6)


def test_every_batch_is_served_by_its_quotas():
    scores = torch.rand(15, 3, generator=torch.Generator().manual_seed(0))
    served = serve_by_quota(scores, [3, 2, 1], COSTS)
    assert served.shape == (15,)
    for start in (0, 6):
        part = slice(start, start + 6)
        assert served[part].tolist() == assign_by_quota(scores[part], [3, 2, 1], COSTS).tolist()


def test_quotas_of_equally_costly_experts_are_chosen_as_they_are_served():
    scores = torch.full((800, 3), 0.5)
    scores[:, 2] = (torch.arange(800) % 2).float()
    costs = [1.0, 2.0, 2.0]
    quotas = quotas_for_budget(scores, costs, 1.5, 8)
    assert scores[torch.arange(800), serve_by_quota(scores, quotas, costs)].mean() == 0.75


@pytest.mark.parametrize("cost, rows", [(0.1, 3), (0.7, 7), (2.3, 33)])
def test_a_budget_of_equal_costs_is_kept(cost, rows):
    assert lambda_for_budget(torch.rand(rows, 2), [cost, cost], cost) == 0.0


@pytest.mark.parametrize("quotas", [[0, 0, 0], [], [3, -1, 1], [3.0, 1, 1], [True, 1, 1]])
def test_quotas_that_serve_no_query_are_refused(quotas):
    for serve in (lambda: serve_by_quota(torch.zeros(4, 3), quotas, COSTS), lambda: quotas_for_batch(quotas, 4)):
        with pytest.raises(SecureRouterValueError, match=r"`quotas` should be counts of queries, .* got \["):
            serve()


def test_no_queries_are_served_by_nobody():
    served = serve_by_quota(torch.zeros(0, 3), [1, 1, 1], COSTS)
    assert served.shape == (0,) and served.dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: fill_batch(0, 4), "count"),
        (lambda: fill_batch(2, 0), "size"),
        (lambda: quotas_for_batch([1, 1], 0), "batch_size"),
        (lambda: quotas_for_budget(torch.zeros(4, 3), COSTS, 2.0, 0), "batch_size"),
        (lambda: quotas_for_shares([0.5, 0.5], 0), "batch_size"),
    ],
)
def test_a_batch_of_no_query_is_refused(call, name):
    with pytest.raises(SecureRouterValueError, match=f"`{name}` should be at least 1, got 0"):
        call()


@pytest.mark.parametrize("costs", [COSTS[:2], [*COSTS, 20.0], []])
def test_costs_of_other_experts_than_the_scores_are_refused(costs):
    scores = torch.zeros(4, 3)
    for call in (
        lambda: quotas_for_budget(scores, costs, 2.0, 6),
        lambda: lambda_for_budget(scores, costs, 2.0),
        lambda: lambda_grid(scores, costs),
    ):
        with pytest.raises(SecureRouterValueError, match=r"`costs` should have one entry for each expert, .*\(4, 3\)"):
            call()


@pytest.mark.parametrize("shares", [[0.9, 0.9], [0.3, 0.3], [1.5, -0.5], []])
def test_shares_that_do_not_sum_to_1_are_refused(shares):
    with pytest.raises(SecureRouterValueError, match="`shares` should be fractions that sum to 1"):
        quotas_for_shares(shares, 4)


def test_shares_that_were_rounded_make_whole_quotas():
    assert quotas_for_shares([0.3333, 0.3333, 0.3333], 30_000) == [10_000] * 3
    assert quotas_for_shares([0.667, 0.334], 2000) == [1333, 667]
