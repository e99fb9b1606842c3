# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How routing follows the pool and its costs."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_securerouter.files import write_json
from hf_securerouter.metrics import SCORES, glue_score
from hf_securerouter.recipes.prediction import device, predict
from hf_securerouter.recipes.routed_pool import OBJECTIVES
from hf_securerouter.routing import choose_expert, lambda_for_budget


LARGEST_COST = 13.0  # of the baseline profile, the paper's unit


def cost_profiles(costs):
    """The paper's variants of a pool's costs, the cheapest expert first."""
    mean = sum(costs) / len(costs)
    return {
        "baseline": list(costs),
        "scale 0.7": [0.7 * cost for cost in costs],
        "scale 1.5": [1.5 * cost for cost in costs],
        "flat": [mean + 0.4 * (cost - mean) for cost in costs],
        "steep": [0.5 * costs[0], *costs[1:-1], 1.5 * costs[-1]],
        "reversed": list(costs[::-1]),
    }


def pool_sizes(count, largest=5):
    """Experts of pools of 2, 3, ... experts, always with the first and the last one."""
    sizes = range(2, min(count, largest) + 1)
    return [[round(step * (count - 1) / (size - 1)) for step in range(size)] for size in sizes]


def subset(rows, pool):
    """Rows with the answers of some of the experts."""
    return [row | {"expert_logits": [row["expert_logits"][k] for k in pool]} for row in rows]


def scores_of(run, folders, pool, costs, objective, training, tenth):
    """A router for some of the experts at some costs, and its outputs for the tuning part."""
    profile = {"routed_seconds": costs, "source": "given"}
    model = run.pool([folders[k] for k in pool], profile, objective, [run.lengths[k] for k in pool])
    run.train_router(model, subset(training, pool))
    return predict(model.to(device()), subset(tenth, pool), run.collate, ("router_logits",))[0]


def outcome(run, tenth, pool, costs, scores, price):
    """Shares and score on the tuning part."""
    served = choose_expert(scores, costs, price)
    logits = torch.tensor([[row["expert_logits"][k] for k in pool] for row in tenth])
    answers = logits[:, :, 0] if run.task.regression else logits.argmax(dim=2)
    predicted = answers.gather(1, served[:, None]).squeeze(1)
    return {
        "costs": costs,
        "shares": [(served == k).float().mean().item() for k in range(len(pool))],
        "score": glue_score(run.task.name)(predicted.numpy(), torch.tensor([row["labels"] for row in tenth]).numpy()),
        "routing_lambda": price,
    }


def sweep(run, folders, answered, parts, seconds):
    """All variants, as JSON-able values; `gumbel` decides by its outputs alone, `utility` with one lambda for all
    profiles of a pool, that which halves the baseline's largest cost."""
    training, tenth = ([answered[index] for index in part] for part in parts)
    baseline = [LARGEST_COST * cost / seconds[-1] for cost in seconds]
    path = run.folder / "sweep.json"
    found = json.loads(path.read_text()) if path.exists() else {"pools": {}, "profiles": {}}

    def variant(kind, name, pool, costs, objective, price):
        done = found[kind].setdefault(name, {"experts": pool})
        if objective not in done:
            scores = scores_of(run, folders, pool, costs, objective, training, tenth)
            if objective == "utility" and price is None:
                price = lambda_for_budget(scores, costs, max(costs[-1] / 2, costs[0]))
            done[objective] = outcome(run, tenth, pool, costs, scores, price or 0.0)
            write_json(found, path)
        return done[objective]["routing_lambda"]

    for objective in OBJECTIVES:
        for pool in pool_sizes(len(folders)):
            variant("pools", f"{len(pool)} experts", pool, [baseline[k] for k in pool], objective, None)
        price, everyone = None, list(range(len(folders)))
        for name, costs in cost_profiles(baseline).items():
            price = variant("profiles", name, everyone, costs, objective, price)
    return found


def table(run, found, command):
    """The variants as a page in Markdown."""
    names = ", ".join(f"{kind} {Path(str(value)).name}" if value else kind for kind, value, _ in run.members)
    score = "+".join(SCORES[run.task.name])
    lines = [f"# How routing follows the pool and its costs: {run.task.name}", "", _INTRODUCTION]
    lines += [f"Experts, from 0 on: {names}. Score: {score}.", "", f"```bash\n{command}\n```", ""]
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
