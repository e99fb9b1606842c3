# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the tests of recipes share: made-up data, a small checkpoint, and runs without their slowest parts."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_securerouter.pool import cut_layers
from hf_securerouter.recipes.experts import load_expert
from tests.recipes.made_up import made_up_rows
from tests.tiny import family_config


@pytest.fixture(scope="session")
def made(tmp_path_factory, tokenizer):
    """A folder with data of two tasks and a checkpoint of three layers."""
    folder = tmp_path_factory.mktemp("glue")
    for task in ("mrpc", "stsb"):
        (folder / "data" / task).mkdir(parents=True)
        for split, count, seed in (("train", 120, 0), ("validation", 40, 1)):
            with gzip.open(folder / "data" / task / f"{split}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in made_up_rows(count, seed, task == "stsb"))
    torch.manual_seed(0)
    model = BertForSequenceClassification(family_config("bert", layers=3, width=16))
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    return folder


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """The figure and the intervals, which take the longest, have tests of their own."""
    monkeypatch.setattr("hf_securerouter.reports.bootstrap", lambda statistic, count, *rest: (0.0, 1.0))
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.draw_report", lambda report, path, *rest: Path(path).write_bytes(b"png")
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    monkeypatch.setattr(
        "hf_securerouter.recipes.tasks.glue_metric", lambda task: lambda p, r: {"accuracy": float((p == r).mean())}
    )


@pytest.fixture
def two_experts(made, tmp_path):
    """The checkpoint's first layer, and all of it."""
    model = BertForSequenceClassification.from_pretrained(made / "checkpoint")
    cut_layers(model, 1).save_pretrained(tmp_path / "shallow")
    return [load_expert(folder) for folder in (tmp_path / "shallow", made / "checkpoint")]


@pytest.fixture
def exact_dir(made, tmp_path, two_experts):
    """What a run leaves of its experts."""
    folder = tmp_path / "exact" / "experts" / "final"
    for index, expert in enumerate(two_experts):
        expert.config.problem_type = "single_label_classification"
        expert.save_pretrained(folder / str(index))
        AutoTokenizer.from_pretrained(made / "checkpoint").save_pretrained(folder / str(index))
    return tmp_path / "exact"
