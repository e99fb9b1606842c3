# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a run needs of the extra `train` is asked for before it begins."""

import sys

import pytest

from hf_securerouter.errors import MissingPackageError, SecureRouterError
from hf_securerouter.recipes.arguments import DataArguments
from hf_securerouter.recipes.data import open_data
from hf_securerouter.recipes.packages import FIGURE, check_packages
from tests.recipes.made_up import arguments, loop_run


@pytest.fixture
def nothing_installed(monkeypatch):
    for name in ("datasets", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_run_without_matplotlib_is_refused_before_anything_is_trained(made, tmp_path, nothing_installed):
    with pytest.raises(MissingPackageError, match=r"needs matplotlib: `pip install 'hf_securerouter\[train\]'`"):
        loop_run(arguments(made, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert issubclass(MissingPackageError, SecureRouterError) and issubclass(MissingPackageError, ImportError)


def test_everything_that_is_missing_is_named_at_once(nothing_installed):
    with pytest.raises(MissingPackageError, match="needs datasets and matplotlib: "):
        check_packages(DataArguments(task_name="mrpc"), FIGURE)


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"task_name": "mrpc"}, True),
        ({"task_name": "mrpc", "train_file": "a.csv"}, True),  # the other split is the Hub's
        ({"task_name": "mrpc", "train_file": "a.csv", "validation_file": "b.csv"}, False),
        ({"task_name": "mrpc", "data_dir": "data"}, False),
        ({"train_file": "a.csv", "validation_file": "b.parquet"}, True),
        ({"train_file": "a.csv", "validation_file": "b.csv.gz"}, False),
        ({"dataset_dir": "saved"}, True),
        ({"dataset_dir": "parquet"}, True),
        ({"dataset_dir": "csv"}, False),
    ],
)
def test_datasets_is_asked_for_where_it_reads_the_rows(given, needed, tmp_path, monkeypatch, nothing_installed):
    monkeypatch.chdir(tmp_path)
    for name in ("saved/dataset_dict.json", "parquet/train.parquet", "csv/train.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    if needed:
        with pytest.raises(MissingPackageError, match="needs datasets: "):
            open_data(DataArguments(**given))
    else:
        check_packages(DataArguments(**given))


def test_a_figure_that_fails_leaves_the_model_and_is_drawn_by_a_resumed_run(made, tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("no font")

    table = tmp_path / "results.json"
    argv = arguments(made, tmp_path / "out", "--results_file", str(table))
    with monkeypatch.context() as patched:
        patched.setattr("hf_securerouter.recipes.routed_pool.draw_report", fails)
        with pytest.raises(RuntimeError, match="no font"):
            loop_run(argv)()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "row.json"):
        assert (tmp_path / "out" / name).exists(), name
    assert not (tmp_path / "out" / "curve.png").exists() and not table.exists()
    run = loop_run(argv)
    run.train = lambda *step: pytest.fail("it trains")
    run()
    assert (tmp_path / "out" / "curve.png").exists() and table.exists()
