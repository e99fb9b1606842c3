# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Training rows are refused before training where a part of them would be empty."""

import json

import pytest

from hf_securerouter import SecureRouterValueError
from hf_securerouter.recipes.data import split_rows
from hf_securerouter.recipes.row_parts import check_count, split_training_rows
from hf_securerouter.recipes.tasks import TASKS
from tests.recipes.made_up import arguments, loop_run, made_up_rows


def run_of(made, tmp_path, rows, *more, task="mrpc", **seams):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("--train_file", str(tmp_path / "train.jsonl"), *more)
    return loop_run(arguments(made, tmp_path / "out", *more, task=task), **seams)


def no_training(*arguments):
    pytest.fail("it trains")


def test_too_few_training_rows_are_refused_before_training(made, tmp_path):
    run = run_of(made, tmp_path, made_up_rows(3, 0), train_pool=no_training)
    with pytest.raises(SecureRouterValueError, match="There are 3 training rows, .* at least 6, so that the experts"):
        run()
    # More rows go into the same folder: nothing was kept of the few.
    assert len(run_of(made, tmp_path, made_up_rows(6, 0)).load_rows("train")) == 6


def test_too_few_rows_for_folds_are_refused_before_training(made, tmp_path):
    run = run_of(made, tmp_path, made_up_rows(6, 0), "--cross_fit_folds", "4", train_pool=no_training)
    message = "There are 6 training rows, .* at least 7, so that each of 4 folds, .* or fewer `cross_fit_folds`"
    with pytest.raises(SecureRouterValueError, match=message):
        run()


@pytest.mark.parametrize("folds", [0, 2, 3, 5, 10])
def test_so_many_rows_as_are_asked_for_leave_no_part_empty(folds):
    for count in range(1, 40):
        rows = made_up_rows(count, 0)
        try:
            check_count(TASKS["mrpc"], count, folds)
        except SecureRouterValueError:
            with pytest.raises(SecureRouterValueError, match="`rows` are .* too few for"):
                split_training_rows(TASKS["mrpc"], rows, folds, 0)
        else:
            for parts in split_training_rows(TASKS["mrpc"], rows, folds, 0):
                assert all(parts) and sorted(sum(parts, [])) == list(range(count))


def test_phrases_of_one_sentence_are_refused_before_any_fold_is_trained():
    rows = [{"sentence": text} for text in ("a b c d", "a b", "c d", "b c", "a", "d")]
    check_count(TASKS["sst2"], len(rows), 2)
    with pytest.raises(SecureRouterValueError, match="too few to train on"):
        split_training_rows(TASKS["sst2"], rows, 2, 0)


@pytest.mark.parametrize(("task", "fewest"), [("mrpc", 6), ("stsb", 8)])
def test_a_run_on_the_fewest_rows_ends(made, tmp_path, task, fewest):
    with pytest.raises(SecureRouterValueError, match=f"There are {fewest - 1} training rows, .* at least {fewest},"):
        check_count(TASKS[task], fewest - 1, 0)
    report = run_of(made, tmp_path, made_up_rows(fewest, 0, task == "stsb"), task=task)()
    assert report["inputs"] == 40


def with_validation(tmp_path, rows):
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--validation_file", str(path))


def test_one_validation_row_of_a_regression_is_refused_before_training(made, tmp_path):
    more = with_validation(tmp_path, made_up_rows(1, 1, True))
    run = run_of(made, tmp_path, made_up_rows(8, 0, True), *more, task="stsb", train_pool=no_training)
    message = "There is 1 validation row, and a regression needs at least 2.*: pass more rows, or a larger `max_eval_s"
    with pytest.raises(SecureRouterValueError, match=message):
        run()


@pytest.mark.parametrize("more", [(), ("--max_eval_samples", "1")])
def test_validation_rows_that_are_wrong_are_refused_before_training(made, tmp_path, more):
    rows = made_up_rows(2, 1, True) if more else []
    more = (*with_validation(tmp_path, rows), *more)
    run = run_of(made, tmp_path, made_up_rows(8, 0, True), *more, task="stsb", train_pool=no_training)
    with pytest.raises(SecureRouterValueError, match="validation row|got no row"):
        run()


@pytest.mark.parametrize(("task", "fewest"), [("mrpc", 1), ("stsb", 2)])
def test_a_run_on_the_fewest_validation_rows_ends(made, tmp_path, task, fewest):
    more = with_validation(tmp_path, made_up_rows(fewest, 1, task == "stsb"))
    report = run_of(made, tmp_path, made_up_rows(12, 0, task == "stsb"), *more, task=task)()
    assert report["inputs"] == fewest


def test_a_part_that_would_be_empty_is_refused():
    with pytest.raises(SecureRouterValueError, match="`rows` are 3, too few for 3 parts"):
        split_rows(TASKS["mrpc"], made_up_rows(3, 0), [0.2, 0.1], 0)
