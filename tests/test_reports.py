# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Curves, areas and intervals, against numbers worked out by hand."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter import SecureRouterValueError, files, reports
from hf_securerouter.reports import PoolAnswers, audc, bootstrap, qnc, routed_curve, single_experts, zero_router


def accuracy(predictions, references):
    return float((predictions == references).mean())


def make_answers(right, costs, router_cost=0.0):
    """A pool in which `right` (N, K) says who is right; the right answer is 1."""
    right = np.asarray(right)
    references = np.ones(len(right), dtype=np.int64)
    return PoolAnswers(
        right.astype(np.int64),
        references,
        right.astype(float),
        costs,
        [cost + router_cost for cost in costs],
        right[:, -1].astype(np.int64),
        costs[-1],
        accuracy,
    )


# Both right on the first two, the large one alone on the third, nobody on the fourth.
SMALL = make_answers([[1, 1], [1, 1], [0, 1], [0, 0]], [1.0, 4.0])


def test_single_experts():
    assert single_experts(SMALL) == [(0.25, 0.5), (1.0, 0.75)]


def test_oracle_pays_for_the_large_expert_only_where_it_helps():
    assert reports.oracle_curve(SMALL)[-1] == ((1 + 1 + 4 + 1) / 16, 0.75)


def test_a_useful_router_reaches_the_largest_score_early_and_pays_for_itself():
    scores = torch.tensor([[0.9, 0.9], [0.8, 0.9], [0.1, 0.8], [0.1, 0.2]])
    curve = routed_curve(SMALL, scores)
    assert (0.4375, 0.75) in curve and qnc(curve, 0.75) == pytest.approx(0.4375)
    with_cost = routed_curve(make_answers(SMALL.predictions, [1.0, 4.0], router_cost=0.4), scores)
    assert [cost for cost, _ in with_cost] == pytest.approx([cost + 0.1 for cost, _ in curve])


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy_in_bins():
    logits = torch.tensor([[0.0, 2.0]] * 4 + [[0.0, 0.4]] * 4)  # sure by 0.8808 and by 0.5987
    labels = torch.tensor([1, 1, 1, 0, 1, 1, 1, 0])
    expected = (abs(0.880797 - 0.75) + abs(0.598688 - 0.75)) / 2
    assert reports.expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-5)
    in_one_bin = abs((0.880797 + 0.598688) / 2 - 0.75)
    assert reports.expected_calibration_error(logits, labels, bins=1) == pytest.approx(in_one_bin, abs=1e-5)
    sure = torch.tensor([[0.0, 100.0]])  # of the last bin, not beyond it
    assert reports.expected_calibration_error(sure, torch.tensor([0])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "curve, area",
    [
        ([(0.5, 0.8)], 0.8),
        ([(0.0, 0.0), (1.0, 1.0)], 0.5),
        ([(0.2, 0.5), (0.6, 0.9)], 0.2 * 0.5 + 0.4 * 0.7 + 0.4 * 0.9),
        ([(0.5, 0.0), (1.5, 1.0)], 0.5 * 0.25),
    ],
)
def test_area(curve, area):
    assert audc(curve) == pytest.approx(area)


@given(st.lists(st.tuples(st.floats(0, 1.2), st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda p: p[0]))
def test_area_lies_between_the_scores_and_grows_with_them(curve):
    curve = sorted(curve)
    scores = [score for _, score in curve]
    assert min(scores) - 1e-9 <= audc(curve) <= max(scores) + 1e-9
    assert audc([(cost, score + 0.5) for cost, score in curve]) == pytest.approx(audc(curve) + 0.5)


def test_quality_neutral_cost():
    curve = [(0.2, 0.5), (0.6, 0.9), (0.8, 0.7)]
    assert qnc(curve, 0.7) == pytest.approx(0.4)
    assert qnc(curve, 0.4) == 0.2 and qnc(curve, 0.9) == pytest.approx(0.6) and qnc(curve, 0.95) is None


def test_zero_router_mixes_only_what_is_worth_it():
    # The second expert lies below the line from the first to the third, the last is worse and dearer.
    right = np.zeros((20, 4), dtype=int)
    for k, count in enumerate((10, 11, 16, 15)):
        right[:count, k] = 1
    answers = make_answers(right, [1.0, 2.0, 3.0, 4.0])
    assert zero_router(answers) == [(0.25, 0.5), (0.75, 0.8)]
    # The largest expert's 0.75 is reached by a mix, at 5/6 of the way.
    assert qnc(zero_router(answers), 0.75) == pytest.approx(0.25 + 0.5 * 5 / 6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_no_router_beats_the_oracle(seed):
    generator = np.random.default_rng(seed)
    answers = make_answers(generator.integers(0, 2, (40, 3)), [1.0, 2.0, 5.0])
    any_router = routed_curve(answers, torch.from_numpy(generator.random((40, 3))))
    assert audc(any_router) <= audc(reports.oracle_curve(answers)) + 1e-9
    assert audc(zero_router(answers)) <= audc(reports.oracle_curve(answers)) + 1e-9


def test_bootstrap_covers_the_mean_as_the_normal_interval_does():
    values = np.repeat([0.0, 1.0], 200)
    low, high = bootstrap(lambda rows: values[rows].mean(), 400, 2000)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006) and high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    assert (low, high) == bootstrap(lambda rows: values[rows].mean(), 400, 2000)
    assert (low, high) != bootstrap(lambda rows: values[rows].mean(), 400, 2000, seed=1)


@pytest.fixture
def report():
    generator = np.random.default_rng(0)
    right = generator.random((60, 3)) < [0.6, 0.75, 0.9]
    scores = torch.from_numpy(0.7 * right + 0.3 * generator.random((60, 3)))
    served = np.repeat([0, 1, 2], 20)
    answers = make_answers(right, [1.0, 3.0, 10.0], router_cost=0.5)
    return make_answers, answers, reports.make_report(answers, {"utility": scores}, {"quota": served}, resamples=60)


def test_report_holds_every_figure_with_its_interval(report):
    _, answers, found = report
    assert set(found["audc"]) == set(found["curves"]) == set(found["qnc"]) == {"utility", "zero", "oracle"}
    policy = found["policies"]["quota"]
    assert policy["shares"] == pytest.approx([1 / 3] * 3)
    assert policy["relative_cost"] == pytest.approx((14 / 3 + 0.5) / 10)
    assert policy["relative_cost_interval"][0] <= policy["relative_cost"] <= policy["relative_cost_interval"][1]
    assert policy["lost"] == pytest.approx(found["largest_score"] - policy["score"])
    assert policy["lost_interval"][0] < policy["lost"] < policy["lost_interval"][1]
    assert found["largest_score"] == accuracy(answers.predictions[:, 2], answers.references)
    low, high = found["audc_interval"]["utility"]
    assert low < found["audc"]["utility"] < high


def test_a_pool_may_be_compared_with_an_expert_outside_of_it(report):
    _, answers, _ = report
    better = replace(answers, largest=np.ones(60, dtype=np.int64), largest_cost=20.0)
    found = reports.make_report(better, {}, {"quota": np.repeat([0, 1, 2], 20)}, resamples=60)
    policy = found["policies"]["quota"]
    assert found["largest_score"] == 1.0 and policy["lost"] == pytest.approx(1 - policy["score"])
    assert (
        policy["relative_cost"] == pytest.approx((14 / 3 + 0.5) / 20) and found["experts"][2]["relative_cost"] == 0.5
    )
    assert found["qnc"]["zero"] is None


def test_report_is_written_as_json_and_drawn_as_png(report, tmp_path):
    files.write_json(report[2], tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["costs"] == [1.0, 3.0, 10.0]
    pytest.importorskip("matplotlib")
    reports.draw_report(report[2], tmp_path / "curve.png", title="made up")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "curve.png"}


def test_the_figure_has_the_variants_that_were_measured(report, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn = []
    measured = {"expert": 0, "score": 0.71, "seconds": 2.0}
    told = report[2] | {"variants": [measured, {"expert": 1, "score": 0.6}]}
    with pytest.MonkeyPatch.context() as patch:
        plot = Axes.plot
        patch.setattr(Axes, "plot", lambda self, *a, **k: drawn.append((a, k.get("label"))) or plot(self, *a, **k))
        reports.draw_report(told, tmp_path / "curve.png")
    assert [line for line in drawn if line[0][2:] == ("x",)] == [
        ((0.2, 0.71, "x"), "variants of experts, on held-out rows")
    ]


def test_a_figure_without_matplotlib_names_the_install_line(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_securerouter\[train\]'"):
        reports.draw_report(report[2], tmp_path / "curve.png")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "report.json"
    files.write_json({"a": 1}, path)
    with pytest.raises(ValueError):
        files.write_json({"a": float("nan")}, path)
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_curve_without_a_point_is_refused():
    for call in (lambda: audc([]), lambda: qnc([], 0.5)):
        with pytest.raises(
            SecureRouterValueError, match=r"`curve` should have a point \(cost, score\) or more, got none"
        ):
            call()
