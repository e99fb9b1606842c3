# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter profile`: its report, on a tiny checkpoint, and the network of a plan."""

import json

import pytest
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from hf_securerouter import cli
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.gates.maximum import groups_of
from hf_securerouter.mpc.net.network_model import NETWORKS
from hf_securerouter.mpc.profiler import build, planned, profile
from tests.tiny import family_config, moe_classifier, pool_model


COUNTS = ["online_bytes", "rounds", "dealer_bytes", "client_bytes"]
SECONDS = ["setup_seconds", "preprocess_seconds", "online_seconds", "dealer_seconds"]


def test_report_has_its_fields_and_the_clear_models_logits(tmp_path):
    BertForSequenceClassification(family_config("bert", layers=1)).save_pretrained(tmp_path)
    arguments = ["profile", "--architecture", str(tmp_path), "--seq-length", "8", "--batch-size", "2", "--json"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["seq_length"], report["batch_size"], report["protocol"], report["provider"]) == (
        8,
        2,
        "masked",
        "ttp",
    )
    assert all(report[name] > 0 for name in COUNTS + SECONDS)
    assert set(report["peak_rss_bytes"]) == {"party0", "party1", "dealer", "client"}
    assert report["max_abs_logit_error"] < 0.01
    assert sum(gate["online_bytes"] for gate in report["by_gate"]) == report["online_bytes"]
    assert sum(gate["rounds"] for gate in report["by_gate"]) == report["rounds"]
    assert report["choices"] == {"maximum_groups": [8]}


def test_what_an_expert_computes_instead_is_measured(tmp_path):
    BertForSequenceClassification(family_config("bert", layers=1)).save_pretrained(tmp_path)
    arguments = ["profile", "--architecture", str(tmp_path), "--seq-length", "8", "--json"]
    done = CliRunner().invoke(cli.app, [*arguments, "--hidden-act", "quadratic", "--softmax", "2quad"])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["hidden_act"], report["softmax"]) == ("quadratic", "2quad")
    narrow = CliRunner().invoke(
        cli.app, [*arguments, "--hidden-act", "quadratic", "--softmax", "2quad", "--precision", "reduced"]
    )
    assert narrow.exit_code == 0, narrow.stderr
    assert json.loads(narrow.stdout)["precision"] == "reduced"
    assert json.loads(narrow.stdout)["online_bytes"] < 0.65 * report["online_bytes"]
    assert json.loads(narrow.stdout)["max_abs_logit_error"] < 0.02
    gates = {gate["gate"] for gate in report["by_gate"]}
    assert {"Square", "SelectedSquare"} <= gates and not {"Exponential", "Knockout"} & gates
    assert report["max_abs_logit_error"] < 0.01
    done = CliRunner().invoke(cli.app, [*arguments, "--softmax", "3quad"])
    assert done.exit_code == 2 and "`softmax` should be one of exact, 2quad, 2relu, got '3quad'" in done.stderr


def test_an_unknown_architecture_is_refused():
    with pytest.raises(SecureRouterValueError, match="bert-tiny, bert-base, bert-large, .* or the folder"):
        build("bert-gigantic", 8)


@pytest.mark.parametrize("measure", [planned, profile])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "x"}, "`network` should be one of lan, wan, got 'x'"),
        ({"seq_length": 0}, "`seq_length` should be an integer of at least 2, got 0"),
        ({"seq_length": "x"}, "`seq_length` should be an integer of at least 2, got 'x'"),
        ({"batch_size": 0}, "`batch_size` should be an integer of at least 1, got 0"),
        ({"batch_size": 1.5}, "`batch_size` should be an integer of at least 1, got 1.5"),
        ({"architecture": 3}, "`architecture` should be one of .* got 3"),
        ({"sequence_length": 3}, "does not know `sequence_length` .did you mean `seq_length`"),
    ],
)
def test_what_cannot_be_measured_is_named_before_anything_is_built(measure, arguments, message):
    with pytest.raises(SecureRouterValueError, match=message):
        measure(**{"architecture": "bert-tiny"} | arguments)


def test_a_slow_network_never_takes_more_rounds():
    for values in (2, 16, 64, 100, 128, 512):
        fast, slow = (groups_of(values, 12 * values, NETWORKS[name]) for name in ("lan", "wan"))
        assert len(slow) <= len(fast)
    assert len(groups_of(512, 12 * 512, NETWORKS["wan"])) < len(groups_of(512, 12 * 512, NETWORKS["lan"]))


def test_networks_are_named_and_calibration_is_public(tokenizer):
    model = pool_model()
    assert [problem.path for problem in validate(model, tokenizer, Options(network="moon"))] == ["network"]
    secure = to_mpc(model, tokenizer, max_length=16, network="wan", calibration=["good film", "bad"])
    assert secure.manifest.network == "wan"
    layers = {f"{name}.layers.{at}" for name, spec in secure.manifest.members.items() for at in range(spec.num_layers)}
    assert set(secure.manifest.bounds) == {*secure.manifest.members, *layers}
    assert to_mpc(model, tokenizer, max_length=16).manifest.bounds == {}
    assert secure.manifest.bounds["router"].keys() == {"head"}  # scores, which are ranked, are never narrowed
    assert secure.manifest.bounds["experts.0"].keys() == {"head", "logits"}
    kinds = {"scores", "value", "residual", "inner", "variance_low", "variance_high", "variance"}
    assert secure.manifest.bounds["router.layers.0"].keys() == kinds


def test_a_plan_says_what_a_mixture_costs_and_which_way_is_cheaper():
    arguments = ["profile", "--architecture", "moe-small-8", "--seq-length", "8", "--plan-only", "--json"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    choices = report["choices"]
    assert choices["moe_dispatch"] == "exact" and choices["expert_capacity"] is None
    assert choices["planned"]["exact"]["online_bytes"] == report["online_bytes"] == 4688816
    assert choices["planned"]["capacity"]["online_bytes"] == 3569858
    assert report["rounds"] == 169
    other = planned("moe-small-8", 8, moe_dispatch="capacity")
    assert other["online_bytes"] == 3569858 and other["choices"]["expert_capacity"] == 1


def test_what_a_mixture_does_not_have_is_refused():
    with pytest.raises(SecureRouterValueError, match="a BertConfig has none"):
        planned("bert-tiny", 8, moe_dispatch="exact")
    with pytest.raises(SecureRouterValueError, match="`moe_dispatch` should be one of exact, capacity"):
        planned("moe-small-8", 8, moe_dispatch="shuffle")
    arguments = ["profile", "--architecture", "moe-small-8", "--plan-only", "--protocol", "crypten"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2 and "a plan has none" in done.stderr


def test_a_mixture_is_measured(tmp_path):
    moe_classifier(max_position_embeddings=8).save_pretrained(tmp_path)
    arguments = [
        "profile",
        "--architecture",
        str(tmp_path),
        "--seq-length",
        "8",
        "--moe-dispatch",
        "capacity",
        "--json",
    ]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["choices"]["expert_capacity"] == 2 and report["max_abs_logit_error"] < 0.02
    payload = report["choices"]["planned"]["capacity"]["online_bytes"]
    assert payload < report["online_bytes"] < payload + 100 * report["rounds"]
