# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Calibration: a folded temperature divides the logits of every family and nothing else, and errors shrink with it."""

import json

import pytest
import torch

from hf_securerouter.recipes.calibration import calibration_report, fit_temperatures, fold_temperature
from hf_securerouter.recipes.tasks import TASKS
from tests.tiny import noisy_classifier


@pytest.mark.parametrize("family", ["bert", "mpnet", "distilbert", "deberta-v2", "electra", "albert"])
def test_a_folded_temperature_divides_the_logits_and_nothing_else(family):
    expert = noisy_classifier(family, width=16, heads=4).eval()
    ids = torch.tensor([[2, 7, 9, 3], [2, 8, 5, 3]])
    with torch.no_grad():
        before, hidden = expert(ids).logits, expert.base_model(ids)[0]
        fold_temperature(expert, 2.5)
        torch.testing.assert_close(expert(ids).logits, before / 2.5)
        assert torch.equal(expert.base_model(ids)[0], hidden)


def test_overconfident_experts_are_told_apart_from_calibrated_ones(tmp_path):
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(4000, generator=generator) * 0.98 + 0.01
    labels = (torch.rand(4000, generator=generator) < chance).long()
    calibrated = torch.stack([torch.zeros(4000), torch.logit(chance)], dim=1)
    logits = torch.stack([calibrated, 4 * calibrated], dim=1)
    found = fit_temperatures(tmp_path / "temperatures.json", TASKS["mrpc"], logits, labels)
    assert found[0] == pytest.approx(1.0, rel=0.1) and found[1] == pytest.approx(4 * found[0])
    served = {"mixed": torch.arange(4000) % 2}
    report = calibration_report(TASKS["mrpc"], logits, found, labels, served)
    assert report["temperatures"] == found == json.loads((tmp_path / "temperatures.json").read_text())
    assert report["before"]["experts"][1] > 0.1 and max(report["after"]["experts"]) < 0.03
    assert report["before"]["policies"]["mixed"] > 0.04 > report["after"]["policies"]["mixed"]
    assert calibration_report(TASKS["stsb"], logits, found, labels, served) is None
