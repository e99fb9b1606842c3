# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""GLUE metrics: known values, and the same with and without the `evaluate` library."""

import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import EvalPrediction

from hf_securerouter import metrics
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.metrics import GLUE_METRICS, compute_metrics_for, glue_metric, glue_score


PREDICTIONS = np.array([1, 0, 1, 1, 0, 1, 0, 0])
REFERENCES = np.array([1, 0, 0, 1, 1, 1, 0, 0])  # 3 true and 1 false of each, positives and negatives


@pytest.fixture(autouse=True)
def no_evaluate(monkeypatch):
    """Behave as on a machine without the library: an import of it fails."""
    metrics._load_from_evaluate.cache_clear()
    monkeypatch.setitem(sys.modules, "evaluate", None)
    yield
    metrics._load_from_evaluate.cache_clear()


def fake_evaluate(monkeypatch, compute):
    calls = []

    def load(*arguments):
        calls.append(arguments)
        return types.SimpleNamespace(compute=compute)

    monkeypatch.setitem(sys.modules, "evaluate", types.SimpleNamespace(load=load))
    return calls


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("sst2", {"accuracy": 6 / 8}),
        ("mrpc", {"accuracy": 6 / 8, "f1": 6 / 8}),
        ("cola", {"matthews_correlation": (3 * 3 - 1 * 1) / 16}),
    ],
)
def test_classification_metrics_have_known_values(task, expected):
    assert glue_metric(task)(PREDICTIONS, REFERENCES) == pytest.approx(expected)


def test_f1_is_of_the_positive_class():
    # 2 true positives, 1 false positive, no false negative: precision 2/3, recall 1
    assert glue_metric("qqp")(np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0]))["f1"] == pytest.approx(0.8)


def test_correlations_have_known_values():
    predictions, references = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0])
    computed = glue_metric("stsb")(predictions, references)
    assert computed["spearmanr"] == pytest.approx(1.0)
    assert computed["pearson"] == pytest.approx(14 / math.sqrt(50 * 5))


@pytest.mark.parametrize("task", sorted(GLUE_METRICS))
def test_every_task_gives_exactly_its_metrics_as_floats(task):
    predictions, references = (PREDICTIONS + 0.1, REFERENCES + 0.2) if task == "stsb" else (PREDICTIONS, REFERENCES)
    computed = glue_metric(task)(predictions, references)
    assert tuple(computed) == GLUE_METRICS[task]
    assert all(type(value) is float for value in computed.values())


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=50))
def test_accuracy_and_f1_follow_their_definitions(pairs):
    predictions, references = (np.array(column) for column in zip(*pairs, strict=True))
    computed = metrics._compute_locally(("accuracy", "f1"), predictions, references)
    hits = sum(p and r for p, r in pairs)
    positives = int(predictions.sum() + references.sum())
    assert computed["accuracy"] == pytest.approx(sum(p == r for p, r in pairs) / len(pairs))
    assert computed["f1"] == pytest.approx(2 * hits / positives if positives else 0.0)


def test_evaluate_is_asked_where_it_can_be_loaded(monkeypatch):
    given_to_metric = {}

    def compute(predictions, references):
        given_to_metric.update(predictions=predictions, references=references)
        return {"accuracy": np.float64(0.25)}

    calls = fake_evaluate(monkeypatch, compute)
    computed = glue_metric("rte")(PREDICTIONS, REFERENCES)
    assert computed == {"accuracy": 0.25} and type(computed["accuracy"]) is float
    assert calls == [("glue", "rte")]
    assert given_to_metric["predictions"] is PREDICTIONS and given_to_metric["references"] is REFERENCES


def test_local_metric_serves_when_evaluate_cannot_reach_the_hub(monkeypatch):
    def load(*arguments):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "evaluate", types.SimpleNamespace(load=load))
    assert glue_metric("sst2")(PREDICTIONS, REFERENCES) == {"accuracy": 0.75}


def test_unknown_task_is_refused_with_the_tasks_there_are():
    with pytest.raises(SecureRouterValueError, match=r"`task` must be one of .*'sst2'.* got 'sst-2'"):
        glue_metric("sst-2")


def test_different_lengths_are_refused():
    with pytest.raises(SecureRouterValueError, match=r"same shape, got \(8,\) and \(7,\)"):
        glue_metric("sst2")(PREDICTIONS, REFERENCES[:-1])
    with pytest.raises(SecureRouterValueError, match=r"same shape, got \(8,\) and \(8, 1\)"):
        glue_metric("stsb")(PREDICTIONS, REFERENCES[:, None])


def test_compute_metrics_takes_the_class_of_the_largest_logit():
    logits = np.array([[0.1, 0.9], [2.0, -1.0], [0.0, 3.0]])
    prediction = EvalPrediction(predictions=logits, label_ids=np.array([1, 1, 1]))
    assert compute_metrics_for("sst2")(prediction) == pytest.approx({"accuracy": 2 / 3})
    assert compute_metrics_for()(prediction) == pytest.approx({"accuracy": 2 / 3})


def test_compute_metrics_of_a_regression_takes_the_scores():
    scores = np.array([[1.0], [2.0], [4.0]])
    prediction = EvalPrediction(predictions=scores, label_ids=np.array([1.0, 2.0, 3.0]))
    assert compute_metrics_for(regression=True)(prediction) == pytest.approx({"mse": 1 / 3})
    assert compute_metrics_for("stsb")(prediction)["spearmanr"] == pytest.approx(1.0)


def test_compute_metrics_of_several_labels_at_once():
    logits = np.array([[2.0, -1.0, 3.0], [-1.0, -1.0, -2.0], [1.0, -1.0, -1.0]])
    right = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    prediction = EvalPrediction(predictions=logits, label_ids=right)
    assert compute_metrics_for()(prediction) == pytest.approx({"accuracy": 2 / 3, "micro_f1": 2 * 3 / (2 * 3 + 2)})


def test_compute_metrics_passes_over_further_outputs():
    logits = np.array([[0.1, 0.9], [2.0, -1.0]])
    prediction = EvalPrediction(predictions=(logits, np.zeros(2)), label_ids=np.array([1, 0]))
    assert compute_metrics_for("sst2")(prediction) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    "task, predictions, expected",
    [
        ("sst2", [1, 1, 0, 0], 0.75),
        ("mrpc", [1, 1, 0, 0], 0.8),
        ("cola", [1, 0, 0, 1], 3**-0.5),
        ("stsb", [1.0, 0.0, 0.0, 2.0], None),
        ("stsb", [3.0, 3.0, 3.0, 3.0], 0.0),
    ],
)
def test_the_score_is_one_number(task, predictions, expected):
    references = np.array([1, 1, 0, 1])
    found = glue_score(task)(np.array(predictions), references)
    if expected is None:
        own = metrics._compute_locally(("pearson", "spearmanr"), np.array(predictions), references)
        expected = (own["pearson"] + own["spearmanr"]) / 2
        assert own["pearson"] != own["spearmanr"]
    assert isinstance(found, float) and found == pytest.approx(expected)


def test_the_score_of_an_unknown_task_is_refused():
    with pytest.raises(SecureRouterValueError, match="`task` must be one of"):
        glue_score("imdb")
