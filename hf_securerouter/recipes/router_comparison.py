# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Utility routers that know more or less, and a cascade, compared on rows whose experts have not seen them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_securerouter.configuration_securerouter import ProblemType
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.losses import expert_utilities
from hf_securerouter.modeling_pooled import pooled_row
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.pool import accepted_inputs
from hf_securerouter.recipes.artifacts import announce, once
from hf_securerouter.recipes.cascade import cascade_scores
from hf_securerouter.recipes.closed_form_router import disagreement, fit_perceptron, margins, score_utilities
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.fitting import Row
from hf_securerouter.recipes.prediction import decide, labels_of, predict, to_device
from hf_securerouter.recipes.routed_pool import Parts, RoutedPoolRun
from hf_securerouter.reports import (
    Curve,
    PoolAnswers,
    audc,
    interval,
    oracle_curve,
    qnc,
    resampled,
    routed_curve,
    zero_router,
)
from hf_securerouter.routing import by_cost


FOLDS = 5
LOST = (0.0, 0.005, 0.015)  # of the largest expert's score: the costs at which less is lost are compared
# What each router should find, and in what: the summary of the last layer, those of all, or the margin itself.
ROUTERS = {
    "margin": (("margin",), "last"),
    "margin itself": (("margin",), "margin"),
    "margin and disagreement": (("margin", "disagreement"), "last"),
    "margin and disagreement, every layer": (("margin", "disagreement"), "every"),
}


class LayerSummaries(nn.Module):
    """The row that a router reads, after every layer of the expert whose encoder it shares: `summaries` of shape
    (B, layers, H)."""

    def __init__(self, pool: SecureRouterForSequenceClassification) -> None:
        super().__init__()
        self.encoder, self.pooling = pool.router.encoder, pool.router.pooling
        if self.pooling == "last":
            raise SecureRouterValueError(
                "`experts` with a causal encoder, which is read at its last token, are not compared: leave them out."
            )

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = self.encoder(**accepted_inputs(self.encoder, inputs), output_hidden_states=True)
        rows = [pooled_row(hidden, attention_mask, self.pooling) for hidden in output.hidden_states[1:]]
        return {"summaries": torch.stack(rows, dim=1)}


@refuses_unknown
def compare_routers(
    run: RoutedPoolRun, folders: Sequence[Path], rows: Sequence[Row], parts: Parts, resamples: int = 200
) -> dict[str, Any]:
    """
    Fits each router of [`ROUTERS`] on four fifths of the held-out rows and asks it for the last fifth, five times.
    The figures are kept in `routers.json`.

    Args:
        run ([`~hf_securerouter.recipes.routed_pool.RoutedPoolRun`]): With experts and costs.
        folders (sequence of `Path`): The experts.
        rows (sequence of `dict`): All training rows, with the experts' answers to those of `parts`.
        parts (`tuple`): Indices of the router's and of the tuning rows.
        resamples (`int`): Draws for the 95 % intervals.

    Returns:
        `dict`: `rows`, `alone` (the score of each expert), and for each router, the cascade, the zero router and the
        oracle its `audc`, the interval of its difference to the first router, and `costs` at which it loses no more
        than [`LOST`], None where it never does.
    """

    def found() -> dict[str, Any]:
        held_out = [rows[index] for part in parts for index in part]
        costs = run.costs(folders)
        pool = run.pool(folders, costs, "utility")
        announce(f"Reading {len(held_out)} rows layer by layer ...")
        read = shortened(held_out, pool.router.max_length, pool.router.encoder.config)
        (summaries,) = predict(to_device(LayerSummaries(pool)), read, run.collate, ("summaries",))
        logits = torch.tensor([row["expert_logits"] for row in held_out])
        return comparison(run, pool, costs, summaries, logits, labels_of(held_out), resamples)

    return once(run.folder / "routers.json", found)


def comparison(
    run: RoutedPoolRun,
    pool: SecureRouterForSequenceClassification,
    costs: dict[str, Any],
    summaries: torch.Tensor,
    logits: torch.Tensor,
    labels: torch.Tensor,
    resamples: int,
) -> dict[str, Any]:
    """The figures of [`compare_routers`] from summaries (N, layers, H), calibrated logits (N, K, C), labels (N,)."""
    task, seconds = run.task, costs["routed_seconds"]
    problem_type: ProblemType = task.problem_type
    shared, largest = pool.config.router_shares_expert, by_cost(costs["seconds"])[-1]
    known = {
        "margin": margins(logits[:, shared]),
        "disagreement": disagreement(logits[:, shared], logits[:, largest], problem_type),
    }
    given = {"last": summaries[:, -1], "every": summaries.flatten(1), "margin": known["margin"]}
    folds = np.random.default_rng(run.args.seed).permutation(len(labels)) % FOLDS
    scores = {"cascade": cascade_scores(task, logits, seconds)}
    for fold in range(FOLDS):
        own, unseen = (torch.from_numpy(np.flatnonzero(where)) for where in (folds != fold, folds == fold))
        utilities = score_utilities(logits[own], labels[own], problem_type, task.score())
        for name, (readings, source) in ROUTERS.items():
            read = given[source]
            wanted = torch.cat([known[reading] for reading in readings], dim=1)
            fitted = fit_perceptron(read[own], wanted[own], utilities)
            scores.setdefault(name, torch.zeros(logits.shape[:2], dtype=torch.float64))[unseen] = fitted.scores(
                read[unseen]
            )
    predictions = decide(task, logits)
    answers = PoolAnswers(
        predictions,
        labels.numpy(),
        expert_utilities(logits, labels, problem_type).numpy(),
        costs["seconds"],
        seconds,
        predictions[:, largest],
        costs["largest_seconds"],
        task.score(),
    )

    def curve(name: str, places: np.ndarray, points: int) -> Curve:
        some = answers.take(places)
        if name in scores:
            return routed_curve(some, scores[name][torch.from_numpy(places)], points)
        return zero_router(some) if name == "zero" else oracle_curve(some, points)

    first, everything = next(iter(ROUTERS)), np.arange(len(labels))

    def areas(name: str) -> np.ndarray:
        return np.array([audc(curve(name, places, 31)) for places in resampled(len(labels), resamples)])

    areas_of_first = areas(first)

    def figures(name: str) -> dict[str, Any]:
        drawn, best = curve(name, everything, 101), answers.score(answers.largest, answers.references)
        return {
            "audc": audc(drawn),
            "against_first": interval(areas(name) - areas_of_first) if name != first else None,
            "costs": [qnc(drawn, best - lost) for lost in LOST],
        }

    return {
        "task": task.name,
        "rows": len(labels),
        "alone": [answers.score(own, answers.references) for own in predictions.T],
        "routers": {name: figures(name) for name in (*ROUTERS, "cascade", "zero", "oracle")},
    }


def table(found: Sequence[dict[str, Any]], command: str) -> str:
    """The comparisons of several tasks as a page in Markdown."""
    header = ["task", "router", "AUDC", "more than the first, in points"]
    header += [f"cost at {100 * lost:g} lost" for lost in LOST]
    lines = [header, ["---"] * len(header)]
    for one in found:
        for name, own in one["routers"].items():
            against = own["against_first"]
            more = "" if against is None else f"{100 * against[0]:+.2f} to {100 * against[1]:+.2f}"
            costs = ["never" if cost is None else f"{cost:.3f}" for cost in own["costs"]]
            lines.append([one["task"], name, f"{own['audc']:.4f}", more, *costs])
    page = [_INTRODUCTION, *(f"| {' | '.join(line)} |" for line in lines)]
    return "\n".join([*page, "", f"```bash\n{command}\n```", ""])


_INTRODUCTION = """\
# Routers compared

Each router is fitted on four fifths of the training rows that have answers of experts which have not seen them, and \
asked for the last fifth, five times; the validation split is not read. Of a cross-fitted run, the hidden states are \
those of the final smallest expert, which has seen all rows. `margin` reads of the smallest expert's last layer how \
sure that expert is, and `margin itself` is told so by that expert's head, which no router on shares reads; \
`disagreement`, in addition, how unlikely the largest expert holds the smallest one's answer to be. The cascade \
trains nothing: the smallest expert answers, and where it is not sure the largest. AUDC is the area under score over \
relative cost, the router's included; intervals are 95 % bootstrap intervals of the difference. Costs are relative \
to the largest expert's, and points lost are against its score.
"""
