# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How routing follows the pool and its costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_securerouter.files import write_json
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.recipes.artifacts import announce
from hf_securerouter.recipes.costs import Costs
from hf_securerouter.recipes.fitting import Row
from hf_securerouter.recipes.prediction import decide, labels_of, predict, to_device
from hf_securerouter.recipes.routed_pool import OBJECTIVES, Parts, RoutedPoolRun
from hf_securerouter.routing import choose_expert, lambda_for_budget


LARGEST_COST = 13.0  # of the baseline profile, the paper's unit


Profiles = dict[str, list[float]]


def cost_profiles(costs: Sequence[float]) -> Profiles:
    """
    The paper's variants of a pool's costs.

    Args:
        costs (K numbers): Cost of each expert, ascending.

    Returns:
        `dict`: K costs for each name of a variant.
    """
    mean = sum(costs) / len(costs)
    return {
        "baseline": list(costs),
        "scale 0.7": [0.7 * cost for cost in costs],
        "scale 1.5": [1.5 * cost for cost in costs],
        "flat": [mean + 0.4 * (cost - mean) for cost in costs],
        "steep": [0.5 * costs[0], *costs[1:-1], 1.5 * costs[-1]],
        "reversed": list(costs[::-1]),
    }


def pool_sizes(count: int, largest: int = 5) -> list[list[int]]:
    """
    Pools of 2, 3, ... experts, always with the first and the last one.

    Args:
        count (`int`): Experts that there are.
        largest (`int`): Experts of the largest pool.

    Returns:
        list of lists of `int`: Indices of the experts of each pool.
    """
    sizes = range(2, min(count, largest) + 1)
    return [[round(step * (count - 1) / (size - 1)) for step in range(size)] for size in sizes]


def subset(rows: Sequence[Row], pool: Sequence[int]) -> list[Row]:
    """Rows with the answers of some of the experts."""
    return [row | {"expert_logits": [row["expert_logits"][k] for k in pool]} for row in rows]


def scores_of(
    run: RoutedPoolRun,
    folders: Sequence[Path],
    pool: Sequence[int],
    costs: Costs,
    objective: str,
    training: Sequence[Row],
    tenth: Sequence[Row],
) -> torch.Tensor:
    """
    Trains a router for some of the experts at some costs.

    Args:
        run ([`RoutedPoolRun`]): The run that the experts are of.
        folders (sequence of `Path`): All of its experts.
        pool (sequence of `int`): Which of them the router chooses from.
        costs (`dict`): The costs of these, as for [`RoutedPoolRun.pool`].
        objective (`str`): Of the router.
        training (sequence of `dict`): Rows with the answers of all experts.
        tenth (sequence of `dict`): The tuning rows, like them.

    Returns:
        `torch.Tensor` of shape (B, K): The router's outputs for the tuning rows.
    """
    if PartialState().is_main_process:  # nor does it go on from a checkpoint of another router
        shutil.rmtree(run.folder / "steps" / f"router-{objective}", ignore_errors=True)
    PartialState().wait_for_everyone()
    model = run.pool([folders[k] for k in pool], costs, objective, [run.lengths[k] for k in pool])
    run.train_router(model, subset(training, pool))
    return predict(to_device(model), subset(tenth, pool), run.collate, ("router_logits",))[0]


def outcome(
    run: RoutedPoolRun,
    tenth: Sequence[Row],
    pool: Sequence[int],
    costs: Sequence[float],
    scores: torch.Tensor,
    price: float,
) -> dict[str, Any]:
    """
    What routing by some scores comes to on the tuning rows.

    Args:
        run ([`RoutedPoolRun`]), tenth (sequence of `dict`), pool (sequence of `int`), costs (K numbers): As in
            [`scores_of`].
        scores (`torch.Tensor` of shape (B, K)): The router's outputs.
        price (`float`): Lambda, what a unit of cost weighs.

    Returns:
        `dict`: `costs`, `shares` of the experts, `score` and `routing_lambda`.
    """
    served = choose_expert(scores, costs, price)
    logits = torch.tensor([[row["expert_logits"][k] for k in pool] for row in tenth])
    predicted = decide(run.task, logits[torch.arange(len(served)), served])
    return {
        "costs": costs,
        "shares": [(served == k).float().mean().item() for k in range(len(pool))],
        "score": run.task.score()(predicted, labels_of(tenth).numpy()),
        "routing_lambda": price,
    }


@refuses_unknown
def sweep(
    run: RoutedPoolRun,
    folders: Sequence[Path],
    answered: Sequence[Row],
    parts: Parts,
    seconds: Sequence[float],
    sizes: Callable[[int], list[list[int]]] = pool_sizes,
    profiles: Callable[[Sequence[float]], Profiles] = cost_profiles,
) -> dict[str, Any]:
    """
    Routers for pools of different size and for different costs. `gumbel` decides by its outputs alone; `utility` with
    one lambda for all profiles of a pool, that which halves the baseline's largest cost.

    Args:
        run ([`RoutedPoolRun`]): The run that the experts are of.
        folders (sequence of `Path`), answered (sequence of `dict`), parts (pair of lists of `int`): As
            [`RoutedPoolRun.experts_and_answers`] returns them.
        seconds (K numbers): Cost of each expert.
        sizes (callable): As [`pool_sizes`].
        profiles (callable): As [`cost_profiles`].

    Returns:
        `dict`: JSON-able. Each variant is written to `sweep.json` when it is done, and not computed again.
    """
    training, tenth = ([answered[index] for index in part] for part in parts)
    baseline = [LARGEST_COST * cost / seconds[-1] for cost in seconds]
    path = run.folder / "sweep.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"pools": {}, "profiles": {}}

    def variant(
        kind: str, name: str, pool: list[int], costs: list[float], objective: str, price: float | None
    ) -> float:
        done = found[kind].setdefault(name, {"experts": pool})
        if objective not in done:
            announce(f"Variant {name!r} with the {objective} router ...")
            own = {"seconds": [seconds[k] for k in pool], "routed_seconds": costs, "source": "given"}
            scores = scores_of(run, folders, pool, own, objective, training, tenth)
            if objective == "utility" and price is None:
                price = lambda_for_budget(scores, costs, max(costs[-1] / 2, costs[0]))
            done[objective] = outcome(run, tenth, pool, costs, scores, price or 0.0)
            write_json(found, path)
        return done[objective]["routing_lambda"]

    for objective in OBJECTIVES:
        for pool in sizes(len(folders)):
            variant("pools", f"{len(pool)} experts", pool, [baseline[k] for k in pool], objective, None)
        price, everyone = None, list(range(len(folders)))
        for name, costs in profiles(baseline).items():
            price = variant("profiles", name, everyone, costs, objective, price)
    return found


def table(run: RoutedPoolRun, found: dict[str, Any], command: str) -> str:
    """
    The variants as a page in Markdown.

    Args:
        run ([`RoutedPoolRun`]): The run that the experts are of.
        found (`dict`): Of [`sweep`].
        command (`str`): The command of the sweep.
    """
    names = ", ".join(f"{kind} {Path(str(value)).name}" if value else kind for kind, value, _ in run.members)
    lines = [f"# How routing follows the pool and its costs: {run.task.name}", "", _INTRODUCTION]
    lines += [f"Experts, from 0 on: {names}. Score: {run.task.score_name}.", "", f"```bash\n{command}\n```", ""]
    for kind, title in (("pools", "Pool sizes"), ("profiles", "Costs of the whole pool")):
        header = ["variant", "experts", "costs"]
        header += [f"{objective}: {column}" for objective in OBJECTIVES for column in ("shares", "score")]
        rows = [header, ["---"] * len(header)]
        for name, variant in found[kind].items():
            row = [name, ", ".join(map(str, variant["experts"]))]
            row.append(" / ".join(f"{cost:.3g}" for cost in variant[OBJECTIVES[0]]["costs"]))
            for own in (variant[objective] for objective in OBJECTIVES):
                row += [" / ".join(f"{share:.0%}" for share in own["shares"]), f"{100 * own['score']:.1f}"]
            rows.append(row)
        lines += [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines)


_INTRODUCTION = """Routers trained on the answers of the same experts, for pools of different size and for different \
costs of one pool, the largest expert at 13 in the baseline. Shares of the queries and scores are those of the tuning \
part of the training data. `gumbel` decides by its outputs alone; `utility` with the lambda that halves the \
baseline's largest cost.
"""
