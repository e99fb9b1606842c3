# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which place's truncation moves the logits: every truncation belongs to one place, and no other is done."""

import json

import pytest
import rounding as script
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_securerouter import fixed_point_layers
from hf_securerouter import mpc_friendly as functions
from hf_securerouter.recipes import rounding
from tests.recipes.test_cotrained_pool import run_of
from tests.tiny import family_config


@pytest.fixture(params=("bert", "distilbert", "roberta"))
def expert(request):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(family_config(request.param, layers=2, width=16))
    functions.use_functions(model, precision="reduced")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


@pytest.fixture
def truncations(monkeypatch):
    """How often values were truncated."""
    counts, real = [], fixed_point_layers.truncated

    def counting(values, bits, training):
        if training:
            counts.append(bits)
        return real(values, bits, training)

    monkeypatch.setattr(fixed_point_layers, "truncated", counting)
    monkeypatch.setattr(functions, "truncated", counting)
    return counts


def test_every_truncation_has_one_place(expert, truncations):
    batch = {"input_ids": torch.randint(5, 20, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.int64)}
    expert.train()(**batch)
    everything = sorted(truncations)
    found = []
    for kind, modules in rounding.places(expert).items():
        truncations.clear()
        moved = rounding.errors(expert, batch, modules, 1)
        assert moved.shape == (1, 4, 2) and moved.abs().max() > 0, kind
        assert truncations and not any(module.training for module in expert.modules())
        found += truncations
    assert sorted(found) == everything


def test_it_tells_of_each_narrow_expert(made, exact_dir, tmp_path, capsys):
    run_of(made, exact_dir, tmp_path / "out", "--variants", "reduced", scores={"1-reduced": 0.0})()
    capsys.readouterr()
    data = ("--task_name", "mrpc", "--data_dir", str(made / "data"), "--max_eval_samples", "8", "--repeats", "2")
    script.main(["--router", str(tmp_path / "out"), *data])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["place"] for one in found] == ["all", "head", "softmax", *dict.fromkeys(rounding.PARTS)]
    assert {one["expert"] for one in found} == {0}  # the other one stays exact
    assert found[0]["largest"] >= found[0]["rms"] > max(one["rms"] for one in found[1:]) / 2
