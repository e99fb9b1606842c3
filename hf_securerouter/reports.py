# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The benefit of a router: quality over cost, compared with single experts and random mixes of them.

A curve is a list of operating points (cost, score), ascending in cost. Costs are relative: 1 is the cost of the
largest expert alone. Shapes: N inputs, K experts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import MissingPackageError, SecureRouterValueError
from .files import write_atomically
from .routing import choose_expert, lambda_grid


Curve = list[tuple[float, float]]


Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class PoolAnswers:
    """The answers of every expert to the inputs of a report.

    Args:
        predictions (`np.ndarray` of shape (N, K)): Class or value that each expert predicts.
        references (`np.ndarray` of shape (N,)): The right classes or values.
        utilities (`np.ndarray` of shape (N, K)): Utility of each answer, from
            [`~hf_securerouter.losses.expert_utilities`].
        costs (K positive numbers): Cost of a query with each expert, without a router.
        routed_costs (K positive numbers): Cost of a query with the router and each expert.
        largest (`np.ndarray` of shape (N,)): Predictions of the largest expert, the measure of quality; it need not be
            one of the K experts.
        largest_cost (`float`): Cost of a query with the largest expert.
        score (callable): Score of predictions (N,) against references (N,); higher is better.
    """

    predictions: np.ndarray
    references: np.ndarray
    utilities: np.ndarray
    costs: Sequence[float]
    routed_costs: Sequence[float]
    largest: np.ndarray
    largest_cost: float
    score: Score

    def take(self, rows: np.ndarray) -> PoolAnswers:
        """The answers to the inputs of `rows`, which may repeat."""
        return PoolAnswers(
            self.predictions[rows],
            self.references[rows],
            self.utilities[rows],
            self.costs,
            self.routed_costs,
            self.largest[rows],
            self.largest_cost,
            self.score,
        )

    def point(self, chosen: np.ndarray, routed: bool = True) -> tuple[float, float]:
        """Relative cost and score if input n goes to expert `chosen[n]`, with or without the router's cost."""
        cost = np.asarray(self.routed_costs if routed else self.costs)[chosen].mean() / self.largest_cost
        return float(cost), self.score(self.predictions[np.arange(len(chosen)), chosen], self.references)


def routed_curve(answers: PoolAnswers, scores: torch.Tensor, points: int = 101, routed: bool = True) -> Curve:
    """The operating points of growing lambda, from the best expert of every input to the cheapest.

    Args:
        answers ([`PoolAnswers`]): The experts' answers.
        scores (`torch.Tensor` of shape (N, K)): Router's outputs.
        points (`int`): Most lambdas to try.
        routed (`bool`): Whether the router's cost counts.
    """
    own = answers.routed_costs if routed else answers.costs
    costs = torch.tensor(own, dtype=torch.float64)
    found: dict[float, float] = {}
    for price in lambda_grid(scores, own, points):
        cost, score = answers.point(choose_expert(scores.double(), costs, price).numpy(), routed)
        found.setdefault(cost, score)
    return sorted(found.items())


def oracle_curve(answers: PoolAnswers, points: int = 101) -> Curve:
    """Routing by the true utilities, at no cost: an upper bound of every router, for a metric that is a mean."""
    return routed_curve(answers, torch.from_numpy(answers.utilities).double(), points, routed=False)


def single_experts(answers: PoolAnswers) -> Curve:
    """Cost and score of each expert alone, in the order of the experts."""
    everyone = np.ones(len(answers.references), dtype=np.int64)
    return [answers.point(k * everyone, routed=False) for k in range(len(answers.costs))]


def zero_router(answers: PoolAnswers) -> Curve:
    """The best random mixes of experts: the upper convex hull of the single experts, rising from the cheapest."""
    hull: Curve = []
    for cost, score in sorted(single_experts(answers)):
        if hull and (score <= hull[-1][1] or cost == hull[-1][0]):
            if cost == hull[-1][0] and score > hull[-1][1]:
                hull.pop()
            else:
                continue
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (cost - x0) > (score - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((cost, score))
    return hull


def audc(curve: Curve) -> float:
    """Area under the curve of score over relative cost, from cost 0 to cost 1; higher is better.

    `audc = integral from 0 to 1 of q(c) dc`, where q joins the operating points by straight lines (a random mix of two
    points lies on the line between them), and is constant left of the cheapest point and right of the costliest. So
    AUDC is the mean score of a pool whose budget is uniform between 0 and the cost of the largest expert. Costs
    include the router's.

    Raises:
        `SecureRouterValueError`: The curve has no point.
    """
    _check_curve(curve)
    costs, scores = np.array(curve).T
    inside = (costs > 0) & (costs < 1)
    x = np.concatenate([[0.0], costs[inside], [1.0]])
    return float(np.trapezoid(np.interp(x, costs, scores), x))


def _check_curve(curve: Curve) -> None:
    if not curve:
        raise SecureRouterValueError(
            "`curve` should have a point (cost, score) or more, got none: pass the result of `routed_curve`."
        )


def qnc(curve: Curve, score: float) -> float | None:
    """Quality-neutral cost: the smallest relative cost at which the curve reaches `score`, the largest expert's.

    Returns:
        `float`, or None if the curve never reaches it. Straight lines join the operating points.

    Raises:
        `SecureRouterValueError`: The curve has no point.
    """
    _check_curve(curve)
    for (c0, s0), (c1, s1) in zip([curve[0], *curve], curve, strict=False):
        if s1 >= score:
            return c1 if s0 >= score or s1 == s0 else c0 + (c1 - c0) * (score - s0) / (s1 - s0)
    return None


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap percentile interval of a statistic, over inputs drawn with replacement.

    Args:
        statistic (callable): A number from the indices (N,) of the drawn inputs.
        count (`int`): N, the number of inputs.
        resamples (`int`): Number of draws.
        seed (`int`): Seed of the draws; with the same seed, statistics are computed on the same inputs.
    """
    return interval([statistic(rows) for rows in resampled(count, resamples, seed)])


def resampled(count: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The indices (N,) of inputs drawn with replacement, again and again; arguments as for [`bootstrap`]."""
    generator = np.random.default_rng(seed)
    return (generator.integers(0, count, count) for _ in range(resamples))


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic's values; NaN are left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def expected_calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """
    How far a classifier's probabilities are from how often it is right: the mean, over inputs, of the distance between
    confidence and accuracy in bins of confidence of equal width.

    Args:
        logits (`torch.Tensor` of shape (N, C)): Its outputs.
        labels (`torch.Tensor` of shape (N,)): The right classes.
        bins (`int`): Number of bins between 0 and 1.

    Returns:
        `float`: From 0, for a classifier that is as often right as it believes, to 1.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
    """
    confidence, answers = logits.double().softmax(dim=-1).max(dim=-1)
    gaps = confidence - (answers == labels).double()
    places = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, places, gaps)
    return (sums.abs().sum() / len(labels)).item()


def make_report(
    answers: PoolAnswers,
    scores: Mapping[str, torch.Tensor],
    chosen: Mapping[str, np.ndarray],
    resamples: int = 1000,
) -> dict[str, Any]:
    """The report of a pool, as JSON-able values.

    Args:
        answers ([`PoolAnswers`]): The experts' answers.
        scores (`dict` of `torch.Tensor` of shape (N, K)): Router's outputs, by objective.
        chosen (`dict` of `np.ndarray` of shape (N,)): The expert of each input, by policy; every policy was fixed
            before these inputs were seen.
        resamples (`int`): Draws of the bootstrap; the slower intervals of areas use a fifth of them.

    Returns:
        `dict`: Among others `curves`, `experts`, `audc`, `qnc` and `policies`; intervals are 95 % intervals.
    """

    def curve(name: str, rows: np.ndarray, points: int) -> Curve:
        some = answers.take(rows)
        if name in scores:
            return routed_curve(some, scores[name][torch.from_numpy(rows)], points)
        return zero_router(some) if name == "zero" else oracle_curve(some, points)

    count = len(answers.references)
    largest_score = answers.score(answers.largest, answers.references)
    everything = np.arange(count)
    drawn = {name: curve(name, everything, 101) for name in (*scores, "zero", "oracle")}
    experts = single_experts(answers)

    def area(name: str) -> Callable[[np.ndarray], float]:
        return lambda rows: audc(curve(name, rows, 21))

    def policy(served: np.ndarray) -> dict[str, Any]:
        def lost(rows: np.ndarray) -> float:
            some = answers.take(rows)
            return some.score(some.largest, some.references) - some.point(served[rows])[1]

        cost, score = answers.point(served)
        return {
            "relative_cost": cost,
            "relative_cost_interval": bootstrap(lambda rows: answers.take(rows).point(served[rows])[0], count, 200),
            "score": score,
            "score_interval": bootstrap(lambda rows: answers.take(rows).point(served[rows])[1], count, resamples),
            "lost": lost(everything),
            "lost_interval": bootstrap(lost, count, resamples),
            "shares": [float((served == expert).mean()) for expert in range(len(answers.costs))],
        }

    def alone(rows: np.ndarray) -> float:
        return answers.score(answers.largest[rows], answers.references[rows])

    return {
        "inputs": count,
        "costs": list(answers.costs),
        "routed_costs": list(answers.routed_costs),
        "largest_cost": answers.largest_cost,
        "largest_score": largest_score,
        "largest_score_interval": bootstrap(alone, count, resamples),
        "experts": [{"relative_cost": cost, "score": score} for cost, score in experts],
        "curves": drawn,
        "audc": {name: audc(points) for name, points in drawn.items()},
        "audc_interval": {name: bootstrap(area(name), count, max(20, resamples // 5)) for name in drawn},
        "qnc": {name: qnc(points, largest_score) for name, points in drawn.items()},
        "policies": {name: policy(served) for name, served in chosen.items()},
    }


def draw_report(
    report: Mapping[str, Any], path: str | os.PathLike, title: str = "", score_name: str = "score"
) -> None:
    """Draw the curves, single experts and policies of a report as a PNG figure; also its `variants` of experts, if
    they have `seconds` and a `score`.

    Raises:
        `MissingPackageError`: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingPackageError("The figure", ["matplotlib"], "train") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), dpi=120)
    styles = {"zero": {"linestyle": "--", "color": "grey"}, "oracle": {"linestyle": ":", "color": "black"}}
    styles["cascade"] = {"linestyle": "-.", "color": "tab:green"}
    for name, curve in report["curves"].items():
        costs, scores = zip(*curve, strict=True)
        label = f"{name} (AUDC {report['audc'][name]:.3f})"
        axes.plot(costs, scores, label=label, **styles.get(name, {"linewidth": 2}))
    for index, expert in enumerate(report["experts"]):
        axes.plot(expert["relative_cost"], expert["score"], "o", color="grey")
        axes.annotate(f" expert {index}", (expert["relative_cost"], expert["score"]), fontsize=8, va="top")
    tried = [variant for variant in report.get("variants", []) if "seconds" in variant]
    for number, variant in enumerate(tried):
        place = variant["seconds"] / report["largest_cost"], variant["score"]
        axes.plot(*place, "x", color="tab:red", label=None if number else "variants of experts, on held-out rows")
    for name, policy in report["policies"].items():
        axes.plot(policy["relative_cost"], policy["score"], "*", markersize=13, label=f"chosen: {name}")
    axes.set(xlabel="cost, relative to the largest expert", ylabel=score_name, title=title)
    axes.set_xlim(0, 1.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    try:
        with write_atomically(path) as temporary:
            figure.savefig(temporary, format="png")
    finally:
        pyplot.close(figure)
