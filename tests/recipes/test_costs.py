# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Costs: what is measured, what is shared between runs, and what the router is charged."""

import re
import warnings
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, GPT2Config

from hf_securerouter import (
    PooledEncoderConfig,
    SecureRouterConfig,
    SecureRouterForSequenceClassification,
    SecureRouterValueError,
    SecureRouterWarning,
)
from hf_securerouter.mpc.conversion.validation import ConversionError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.recipes import costs as recipe
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.experts import load_expert
from hf_securerouter.recipes.fit_with_trainer import parse_args
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from tests.recipes.made_up import TRAINER, arguments
from tests.tiny import family_config, modern_config


def measured_arguments(made, tmp_path, *more):
    args, _ = parse_args(arguments(made, tmp_path, *TRAINER, *more), RunArguments, "")
    args.expert_costs = []
    return args


def measured(monkeypatch, *seconds):
    """Every measurement replaced: they take these seconds, one after the other."""
    asked, seconds = [], iter(seconds)

    def run(secure, batch):
        manifest = secure.manifest
        asked.append((manifest.quotas or manifest.experts[0].num_layers, manifest.max_length, batch))
        return next(seconds)

    monkeypatch.setattr(recipe, "_seconds", run)
    return asked


@pytest.mark.parametrize(
    ("seconds", "waits", "expected"),
    [([50.0, 3.0, 9.0, 4.0], 1, 4.0), ([9.0, 31.0, 30.0], 100, 30.5), ([90.0, 70.0], 300, 70.0)],
)
@pytest.mark.parametrize("quota", [None, 6])
def test_a_measurement_is_a_median_after_a_warm_up(seconds, waits, expected, quota, monkeypatch):
    left, shapes, now, asked = list(seconds), [], [0.0], []

    class Session:
        def __call__(self, inputs):
            now[0] += waits
            shapes.append(tuple(inputs["input_ids"].shape))
            return SimpleNamespace(cost=SimpleNamespace(online_seconds=left.pop(0) - 0.5, preprocess_seconds=0.5))

    monkeypatch.setattr(recipe, "rows_at_a_time", lambda manifest: 2)
    monkeypatch.setattr(recipe.time, "monotonic", lambda: now[0])
    secure = SimpleNamespace(
        manifest=SimpleNamespace(max_length=8, batch=quota),
        local_session=lambda **how: asked.append(how) or nullcontext(Session()),
    )
    # A routed batch is measured whole, an encoder alone by a piece.
    rows = quota or 2
    assert recipe._seconds(secure, 6) == 6 / rows * expected and not left
    assert asked == [{"batch_size": rows}] and shapes == [(rows, 8)] * len(seconds)


def test_bytes_are_those_of_the_plan_and_bounds_make_no_other_shape(made, tmp_path, monkeypatch):
    args = measured_arguments(made, tmp_path)
    asked = measured(monkeypatch, 8.0)
    expert = load_expert(made / "checkpoint")
    found = [recipe.measure_expert(args, expert, 12, "")]
    with torch.no_grad():
        expert.bert.encoder.layer[0].output.dense.bias[0] += 1000.0  # beyond the default bound
    found.append(recipe.measure_expert(args, expert, 12, ""))
    assert len(asked) == 1 and found[0]["seconds"] == found[1]["seconds"] == 1.0
    for one, other in zip(found, (load_expert(made / "checkpoint"), expert), strict=True):
        assert one["bytes"] * 8 == to_mpc(other, max_length=12).plan(8).online_bytes
    assert found[1]["bytes"] > found[0]["bytes"]


def pool_of(shares):
    experts = [family_config("bert", layers=layers, width=16) for layers in (1, 2)]
    router = {"router_shares_expert": 0} if shares else {"router_config": experts[0]}
    config = SecureRouterConfig(expert_configs=experts, expert_costs=[1.0, 2.0], **router)
    return SecureRouterForSequenceClassification(config).eval()


@pytest.mark.parametrize("shares", [True, False])
def test_the_router_costs_what_a_routed_batch_takes_beyond_its_experts(
    made, tmp_path, monkeypatch, shares, two_experts
):
    args = measured_arguments(made, tmp_path)
    asked = measured(monkeypatch, 8.0, 32.0, 40.0)
    pools = []

    def make_pool(costs):
        pools.append(costs["routed_seconds"])
        return pool_of(shares)

    small, large = two_experts
    costs = recipe.measure_costs(args, [small, large], [12, 30], large, make_pool)
    assert asked == [(1, 12, 8), (3, 16, 8), ((7, 1), 16, 8)] and pools == [[1.0, 4.0]]
    assert (
        costs["seconds"] == [1.0, 4.0]
        and costs["largest_seconds"] == 4.0
        and costs["bytes"][0] < costs["bytes"][1] == costs["largest_bytes"]
        and costs["source"] == "measured"
    )
    # 40 seconds for eight: the larger expert's one takes 4; the smaller's take nothing more where it has run already.
    router = (40 - 4) / 8 if shares else (40 - 4 - 7) / 8
    assert costs["routed_seconds"] == pytest.approx([router + (0 if shares else 1), router + 4])


@pytest.mark.parametrize(("shares", "router"), [(True, 1.0), (False, 0.0)])
def test_a_router_never_costs_less_than_the_encoder_that_it_shares(
    made, tmp_path, monkeypatch, capsys, shares, router, two_experts
):
    args = measured_arguments(made, tmp_path)
    measured(monkeypatch, 8.0, 32.0, 5.0)  # of a routed batch; its parts alone take 12 and 11
    costs = recipe.measure_costs(args, two_experts, [12, 30], two_experts[1], lambda costs: pool_of(shares))
    assert costs["routed_seconds"] == pytest.approx([router + (0 if shares else 1), router + 4])
    assert f"fewer seconds than its parts: the router is charged with {router:g} a query" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "budget", "wanted"),
    [([1.0, 2.0, 4.0], None, "one entry for each of 2"), ([1.0, 4.0], 0.5, "`budget_seconds` should be at least 1")],
)
def test_given_costs_are_checked_before_anything_is_trained(made, tmp_path, given, budget, wanted):
    args = measured_arguments(made, tmp_path / "out")
    args.expert_costs, args.budget_seconds = given, budget
    with pytest.raises(SecureRouterValueError, match=wanted):
        RoutedPoolRun(args, lambda *step: None, "")
    assert not (tmp_path / "out").exists()


def test_runs_of_equal_shapes_share_what_was_measured(made, tmp_path, monkeypatch, two_experts):
    experts, pool = two_experts, pool_of(True)
    shared = ("--costs_dir", str(tmp_path / "costs"))
    asked = measured(monkeypatch, 8.0, 32.0, 40.0, 10.0, 4.0, 16.0, 20.0)
    first, second = (measured_arguments(made, tmp_path / name, *shared) for name in ("mrpc", "rte"))
    found = recipe.measure_costs(first, experts, [None, None], experts[1], lambda costs: pool)
    routed = recipe.measure_routed(first, experts[1], pool, [6, 2])
    # The larger expert has been measured alone already.
    assert len(asked) == 4 and routed["counted"] == "online and prepared"
    assert routed["seconds"] == {"routed": 10.0, "largest": 32.0, "relative": 10 / 32}
    assert recipe.measure_costs(second, experts, [None, None], experts[1], lambda costs: pool) == found
    assert recipe.measure_routed(second, experts[1], pool, [6, 2]) == routed and len(asked) == 4
    # Nor does the number of labels make another shape.
    three = BertForSequenceClassification.from_pretrained(
        made / "checkpoint", num_labels=3, ignore_mismatched_sizes=True
    )
    assert recipe.measure_routed(second, three, pool, [6, 2]) == routed and len(asked) == 4
    second.profile_seq_length = 12
    recipe.measure_costs(second, experts, [None, None], experts[1], lambda costs: pool)
    assert asked[4:] == [(1, 12, 8), (3, 12, 8), ((7, 1), 12, 8)]


@pytest.mark.parametrize(
    ("seconds", "quotas"),
    [([1.0, 1.0], [4, 4]), ([1.0, 4.0], [7, 1]), ([0.01, 1.0, 9.0], [6, 1, 1]), ([1.0] * 9, [8] + [0] * 8)],
)
def test_the_router_is_measured_where_experts_take_equal_time(seconds, quotas):
    assert recipe._quotas_of_equal_time(seconds, 8) == quotas


def test_given_costs_count_a_shared_encoder_once(made, tmp_path):
    args = measured_arguments(made, tmp_path)
    args.expert_costs = [1.0, 4.0]
    assert recipe.measure_costs(args, [None] * 2, [None] * 2, None, None)["routed_seconds"] == [1.0, 5.0]
    args.share_router_encoder = False
    assert recipe.measure_costs(args, [None] * 2, [None] * 2, None, None)["routed_seconds"] == [2.0, 5.0]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=30), "'gpt2' has no counterpart on shares"),
        (family_config("bert", hidden_act="mish"), "'mish'"),
    ],
    ids=["family", "activation"],
)
def test_experts_whose_costs_cannot_be_measured_are_refused_before_they_are_trained(config, reason, made, tmp_path):
    args = measured_arguments(made, tmp_path, "--output_dir", str(tmp_path / "run"))
    recipe.check_conversion(args)
    config.save_pretrained(tmp_path / "checkpoint")
    args.experts, args.expert_layers = [str(tmp_path / "checkpoint"), str(made / "checkpoint")], []
    with pytest.raises(ConversionError, match=re.escape(reason)):
        RoutedPoolRun(args, print, "")
    assert not (tmp_path / "run").exists()
    args.expert_costs = [1.0, 2.0]
    recipe.check_conversion(args)


@pytest.fixture
def averaging(made, tmp_path):
    """The folder of an expert whose head reads the mean of the tokens, where a router reads the first one."""
    torch.manual_seed(0)
    config = modern_config(classifier_pooling="mean", num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "averaging")
    AutoTokenizer.from_pretrained(made / "checkpoint").save_pretrained(tmp_path / "averaging")
    return tmp_path / "averaging"


@pytest.mark.parametrize("cheapest", [0, 1])
@pytest.mark.parametrize("shared", [0, 1])
def test_the_router_shares_the_cheapest_encoder_that_it_can_read(
    made, tmp_path, monkeypatch, averaging, cheapest, shared, capsys
):
    args = measured_arguments(made, tmp_path, "--output_dir", str(tmp_path / "run"))
    folders = [made / "checkpoint", averaging] if shared == 0 else [averaging, made / "checkpoint"]
    args.experts, args.expert_layers = [str(folder) for folder in folders], []
    measured(monkeypatch, *([8.0, 32.0] if cheapest == 0 else [32.0, 8.0]), 40.0, 72.0, 10.0)
    run = RoutedPoolRun(args, print, "")
    experts, make_pool = run.experts(folders), partial(run.pool, folders, objective="utility")
    costs = recipe.measure_costs(args, experts, run.lengths, experts[1], make_pool)
    assert make_pool(costs).config.router_shares_expert == shared
    router = min(costs["routed_seconds"])  # that expert has been run already
    assert costs["routed_seconds"][shared] == router >= costs["seconds"][shared]
    assert costs["routed_seconds"][1 - shared] == pytest.approx(router + costs["seconds"][1 - shared])
    assert recipe.measure_routed(args, experts[1], make_pool(costs), [6, 2])["seconds"]["routed"] > 0
    told = f"reads the encoder of expert {shared + 1} of 2, at 4 s a query, as it cannot read that of the cheapest"
    assert (told in capsys.readouterr().out) == (shared != cheapest)


def test_a_router_that_can_read_no_expert_s_encoder_is_refused_before_training(made, tmp_path, averaging):
    for more in (["--narrow_expert"], []):
        args = measured_arguments(made, tmp_path, *more)
        args.model_name_or_path = str(averaging)
        with pytest.raises(ConversionError, match="its head the 'mean' row. Pass `--share_router_encoder false`"):
            recipe.check_conversion(args)
        args.share_router_encoder = False
        recipe.check_conversion(args)


def test_a_router_that_can_read_the_largest_encoder_alone_is_warned_of_before_training(made, tmp_path, averaging):
    args = measured_arguments(made, tmp_path)
    args.expert_layers = []
    for experts, warned in (([averaging, made / "checkpoint"], True), ([made / "checkpoint", averaging], False)):
        args.experts = [str(expert) for expert in experts]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            recipe.check_conversion(args)
        found = [str(one.message) for one in caught if one.category is SecureRouterWarning]
        assert [("largest expert alone" in text and "--share_router_encoder false" in text) for text in found] == (
            [True] if warned else []
        )


def test_a_router_reads_the_row_of_a_pooled_expert_whichever_it_is(made, tmp_path):
    args = measured_arguments(made, tmp_path)
    PooledEncoderConfig(text_config=family_config("bert")).save_pretrained(tmp_path / "pooled")
    args.model_name_or_path = str(tmp_path / "pooled")
    recipe.check_conversion(args)


def test_a_routed_batch_is_measured_against_the_largest_expert(made, tmp_path, monkeypatch):
    args = measured_arguments(made, tmp_path)
    asked = measured(monkeypatch, 10.0, 25.0)
    found = recipe.measure_routed(args, load_expert(made / "checkpoint"), pool_of(True), [6, 2])
    assert asked == [((6, 2), 16, 8), (3, 16, 8)]
    assert found["seconds"] == {"routed": 10.0, "largest": 25.0, "relative": 0.4}


def test_no_input_is_measured_that_is_longer_than_a_run_s_pool_reads(made, tmp_path, monkeypatch, two_experts):
    args = measured_arguments(made, tmp_path, "--max_seq_length", "11", "--output_dir", str(tmp_path / "run"))
    folders = [tmp_path / "shallow", made / "checkpoint"]
    asked = measured(monkeypatch, 8.0, 32.0, 40.0, 10.0)
    run = RoutedPoolRun(args, print, "")
    make_pool = partial(run.pool, folders, objective="utility")
    costs = recipe.measure_costs(args, two_experts, run.lengths, two_experts[1], make_pool)
    found = recipe.measure_routed(args, two_experts[1], make_pool(costs), [6, 2])
    assert asked == [(1, 11, 8), (3, 11, 8), ((7, 1), 11, 8), ((6, 2), 11, 8)] and found["length"] == 11
    args.profile_seq_length = 9
    measured(monkeypatch, 8.0, 32.0)
    assert recipe.measure_routed(args, two_experts[1], make_pool(costs), [6, 2])["length"] == 9


@pytest.mark.slow
def test_costs_are_measured_under_encryption(made, tmp_path, two_experts):
    args = measured_arguments(made, tmp_path, "--quota_batch_size", "2")
    pool = SecureRouterForSequenceClassification.from_expert_pretrained(
        router=None, experts=[tmp_path / "shallow", made / "checkpoint"], num_labels=2, expert_costs=[1.0, 3.0]
    )
    costs = recipe.measure_costs(args, two_experts, [24, 24], two_experts[1], lambda costs: pool)
    assert all(value > 0 for value in costs["seconds"]) and costs["largest_bytes"] == costs["bytes"][1]
    # The router has run the smaller expert's encoder, and that expert's share of a batch costs nothing more.
    assert 0 < costs["routed_bytes"][0] < costs["routed_bytes"][1]
    assert costs["routed_bytes"][1] == pytest.approx(costs["routed_bytes"][0] + costs["bytes"][1])
    found = recipe.measure_routed(args, two_experts[1], pool, [1, 1])
    assert 0 < found["bytes"]["relative"] < 2
