# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The sweep: its variants, and routing that follows the costs."""

import json
from types import SimpleNamespace

import pytest
import run_glue_no_trainer
import torch
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from hf_securerouter.recipes import routed_pool, sweep
from hf_securerouter.recipes.experts import Member
from hf_securerouter.recipes.tasks import TASKS
from hf_securerouter.routing import choose_expert
from tests.tiny import family_config


def test_profiles_are_the_papers():
    profiles = sweep.cost_profiles([2.0, 7.0, 13.0])
    assert profiles["scale 0.7"] == pytest.approx([1.4, 4.9, 9.1])
    assert profiles["scale 1.5"] == pytest.approx([3, 10.5, 19.5])
    assert profiles["flat"] == pytest.approx([5.2, 7.2, 9.6])
    assert profiles["steep"] == pytest.approx([1, 7, 19.5])
    assert profiles["reversed"] == [13.0, 7.0, 2.0]


def test_pools_hold_the_smallest_and_the_largest():
    assert sweep.pool_sizes(5) == [[0, 4], [0, 2, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]]
    assert sweep.pool_sizes(2) == [[0, 1]]


GIVEN = {"routed_seconds": [1.0, 2.0, 3.0], "source": "given"}


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run whose three experts are equally good, and right on different inputs: costs decide."""
    for name, layers in enumerate((1, 2, 3)):
        torch.manual_seed(name)
        BertForSequenceClassification(family_config("bert", layers=layers)).save_pretrained(tmp_path / str(name))
        tokenizer.save_pretrained(tmp_path / str(name))
    options = run_glue_no_trainer.LoopArguments("out", use_cpu=True, max_train_steps=60)
    fit = run_glue_no_trainer.Loop(options)
    run = object.__new__(routed_pool.RoutedPoolRun)
    run.args = SimpleNamespace(
        **{"seed": 0, "router_name_or_path": None, "share_router_encoder": True, "alpha": 0.0, "beta": 0.2},
        **{"temperature": 1.0, "min_temperature": 0.5, "max_seq_length": 16, "expert_max_lengths": [16, 12, 14]},
        **{"router_num_train_epochs": 20, "router_learning_rate": 1e-2},
    )
    run.functions, run.temperatures = {}, {}
    run.members = [Member("narrow", None, 16), Member("cut", 2, 12), Member("cut", 3, 14)]
    run.task, run.folder, run.tokenizer = TASKS["mrpc"], tmp_path, tokenizer
    run.collate = DataCollatorWithPadding(tokenizer)
    run.train = lambda *step: fit(run, *step)
    return run


def answered_rows(count, tokenizer):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        ids = [2, *torch.randint(6, 26, (5,), generator=generator).tolist(), 3]
        logits = [[0.0, 2.0 if (index + k) % 4 else -2.0] for k in range(3)]
        rows.append({"input_ids": ids, "attention_mask": [1] * 7, "labels": 1, "expert_logits": logits})
    return rows


def test_reversing_the_costs_reverses_the_routing(run, tokenizer, tmp_path):
    def some_profiles(costs):
        return {name: sweep.cost_profiles(costs)[name] for name in ("baseline", "reversed")}

    rows = answered_rows(160, tokenizer)
    folders = [tmp_path / str(k) for k in range(3)]
    parts = list(range(120)), list(range(120, 160))
    pool, lengths = run.pool, []
    run.pool = lambda *given: lengths.append(given[3]) or pool(*given)
    given = run, folders, rows, parts, [0.2, 0.7, 1.3], lambda count: [[0, 2]], some_profiles
    found = sweep.sweep(*given)
    assert lengths == [[16, 14], *[[16, 12, 14]] * 2] * 2
    assert found == json.loads((tmp_path / "sweep.json").read_text())
    for objective in ("gumbel", "utility"):
        assert found["pools"]["2 experts"][objective]["costs"] == pytest.approx([2, 13])
        forth, back = (found["profiles"][name][objective] for name in ("baseline", "reversed"))
        assert forth["costs"] == pytest.approx([2, 7, 13]) and back["costs"] == forth["costs"][::-1]
        for shares in (forth["shares"], back["shares"][::-1]):
            assert shares[0] > 0.5 > shares[2], objective
        assert forth["routing_lambda"] == back["routing_lambda"]
        assert forth["score"] > 0.6

    page = sweep.table(run, found, "python training/sweep.py")
    assert "Experts, from 0 on: narrow, cut 2, cut 3. Score: f1." in page
    assert page.count("\n| baseline | 0, 1, 2 | 2 / 7 / 13 |") == page.count("| 13 / 7 / 2 |") == 1
    shares = " / ".join(f"{share:.0%}" for share in found["profiles"]["reversed"]["utility"]["shares"])
    assert f"| {shares} | " in page.splitlines()[-1]

    # What stands in the file is not trained again.
    run.train = None
    assert sweep.sweep(*given) == found


def test_the_router_reads_the_encoder_that_costs_least(run, tmp_path):
    folders = [tmp_path / str(k) for k in range(3)]
    pool = run.pool(folders, GIVEN | {"seconds": [3.0, 1.0, 2.0]}, "utility")
    assert pool.config.router_shares_expert == 1  # not the one with the fewest parameters


def test_a_variant_goes_on_from_no_other_router(run, tokenizer, tmp_path):
    left = tmp_path / "steps" / "router-gumbel"
    train, found = run.train, []
    run.train = lambda *step: found.append(left.exists()) or train(*step)
    rows, folders = answered_rows(16, tokenizer), [tmp_path / str(k) for k in range(3)]
    for _ in range(2):
        left.mkdir(parents=True)
        sweep.scores_of(run, folders, [0, 1, 2], GIVEN | {"seconds": [1.0, 2.0, 3.0]}, "gumbel", rows, rows)
    assert found == [False, False]


def test_predicted_utilities_start_at_their_means(run, tokenizer, tmp_path):
    rows = answered_rows(40, tokenizer)
    run.args.share_router_encoder = False  # a shared encoder's router is fitted, not trained
    run.train = lambda *step: None
    folders = [tmp_path / str(k) for k in range(3)]
    for objective, expected in (("utility", [0.75, 0.75, 0.75]), ("gumbel", None)):
        pool = run.pool(folders, GIVEN | {"seconds": [1.0, 2.0, 3.0]}, objective)
        before = pool.router.out_proj.bias.tolist()
        assert run.train_router(pool, rows)["out_proj.bias"].tolist() == pytest.approx(expected or before)


def test_the_budget_pays_for_the_router_too(run, monkeypatch):
    scores = torch.stack([torch.zeros(16), torch.linspace(0.1, 0.9, 16)], dim=1)
    monkeypatch.setattr(routed_pool, "predict", lambda *arguments: [scores])
    run.args.budget_seconds, run.args.quota_batch_size = None, 8
    model = SimpleNamespace(to=lambda where: None)
    costs = {"seconds": [1.0, 8.0], "routed_seconds": [2.0, 9.0]}
    found = run.tune(model, [], costs)
    assert found["budget_seconds"] == 4.0 and found["quotas"] == [6, 2]
    chosen = choose_expert(scores, costs["routed_seconds"], found["routing_lambda"])
    assert torch.tensor(costs["routed_seconds"])[chosen].mean() <= 4.0 and chosen.sum() == 4
    run.args.budget_seconds = 9.0
    assert run.tune(model, [], costs) == {"budget_seconds": 9.0, "routing_lambda": 0.0, "quotas": [0, 8]}
