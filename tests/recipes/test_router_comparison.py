# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Routers compared: what one of them knows in addition shows in its figures, and rows of validation are not read."""

from types import SimpleNamespace

import compare_routers as script
import numpy as np
import pytest
import torch

from hf_securerouter.recipes.router_comparison import LOST, LayerSummaries, comparison, table
from hf_securerouter.recipes.tasks import TASKS
from tests.recipes.made_up import TRAINER, arguments


COSTS = {"seconds": [1.0, 4.0], "routed_seconds": [1.1, 5.1], "largest_seconds": 4.0}


def test_the_margin_itself_shows_what_a_linear_reading_misses():
    """The small expert is the surer the further it is from the origin, which is no line."""
    generator = torch.Generator().manual_seed(0)
    summaries = torch.randn(600, 1, 4, generator=generator)
    distance = summaries[:, 0, :2].square().sum(dim=1) - 1
    labels = torch.randint(2, (600,), generator=generator)
    wrong = torch.rand(600, generator=generator) < (-2 * distance).sigmoid()
    signs = (2 * labels - 1) * torch.where(wrong, -1, 1)
    own = torch.stack([torch.zeros(600), signs * (distance + 1.5)], dim=1)
    logits = torch.stack([own, torch.nn.functional.one_hot(labels, 2) * 4.0], dim=1)
    run = SimpleNamespace(task=TASKS["sst2"], args=SimpleNamespace(seed=0))
    pool = SimpleNamespace(config=SimpleNamespace(router_shares_expert=0))
    found = comparison(run, pool, COSTS, summaries, logits, labels, 4)["routers"]
    assert found["margin itself"]["audc"] > found["margin"]["audc"] + 0.02


@pytest.mark.parametrize("layer", [0, 1])
def test_what_a_router_knows_in_addition_shows(layer):
    """The small expert is always sure; a layer holds where it is wrong, and the large one is right."""
    generator = torch.Generator().manual_seed(0)
    summaries = torch.randn(600, 2, 8, generator=generator)
    labels = torch.randint(2, (600,), generator=generator)
    answer = torch.where(summaries[:, layer, 5] > 0.7, 1 - labels, labels)
    logits = torch.stack([torch.nn.functional.one_hot(own, 2) * 4.0 for own in (answer, labels)], dim=1)
    logits[:, 0] += 0.1 * summaries[:, 1, :2]  # by how much it is sure says nothing
    run = SimpleNamespace(task=TASKS["sst2"], args=SimpleNamespace(seed=0))
    pool = SimpleNamespace(config=SimpleNamespace(router_shares_expert=0))
    found = comparison(run, pool, COSTS, summaries, logits, labels, 4)
    area = {name: own["audc"] for name, own in found["routers"].items()}
    best = "margin and disagreement" if layer == 1 else "margin and disagreement, every layer"
    worse = {"margin", "margin itself", "cascade", "zero", "margin and disagreement"} - {best}
    assert found["rows"] == 600 and found["alone"][1] == 1.0
    assert area["oracle"] > area[best] > max(area[name] for name in worse) + 0.02
    assert found["routers"][best]["against_first"][0] > 0.02
    costs = found["routers"][best]["costs"]
    assert len(costs) == len(LOST) and costs == sorted(costs, reverse=True)
    assert costs[-1] < found["routers"]["margin"]["costs"][-1]
    page = table([found], "python x")
    assert f"| sst2 | {best} | {area[best]:.4f} | +" in page and "```bash\npython x\n```" in page


def test_the_last_layer_is_what_the_router_reads(model):
    model.eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        found = LayerSummaries(model)(**inputs)["summaries"]
        torch.testing.assert_close(found[:, -1], model.router.summarize(**inputs))
    assert found.shape[1] == model.router.encoder.config.num_hidden_layers


def test_a_run_compares_its_routers_on_training_rows(made, exact_dir, tmp_path, monkeypatch):
    read = []
    rows = script.RoutedPoolRun.load_rows
    monkeypatch.setattr(script.RoutedPoolRun, "load_rows", lambda self, split: read.append(split) or rows(self, split))
    monkeypatch.setattr(
        "hf_securerouter.recipes.router_comparison.resampled", lambda count, *given: [np.arange(count)] * 2
    )
    more = (*TRAINER, "--results_file", str(tmp_path / "results.json"))
    found = script.main(arguments(made, exact_dir, *more))
    assert read == ["train"] and found["rows"] == 36
    assert (tmp_path / "routers.md").read_text() == (exact_dir / "routers.md").read_text()
    assert script.main(arguments(made, exact_dir, *more)) == found
