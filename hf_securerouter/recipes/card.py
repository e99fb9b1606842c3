# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the model card of a run says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.model_card import SecureRouterModelCardData
from hf_securerouter.recipes.tasks import Task


# What a card takes over from a report.
_REPORTED = (
    "metric",
    "largest_score",
    "largest_score_interval",
    "experts",
    "routed_costs",
    "audc",
    "audc_interval",
    "qnc",
    "calibration",
    "variants",
)


@refuses_unknown
def card_data(
    task: Task,
    seed: int,
    report: Mapping[str, Any],
    policy: Mapping[str, Any],
    measured: Mapping[str, Any] | None,
    command: str,
) -> SecureRouterModelCardData:
    """
    The card's data of a routed pool.

    Args:
        task ([`Task`]): The task.
        seed (`int`): Of the run.
        report (`Mapping`): The report, as `report.json` holds it.
        policy (`Mapping`): The entry of the policy that the model is saved with.
        measured (`Mapping`, *optional*): What `routed.json` holds, if costs were measured.
        command (`str`): The command of the run.
    """
    policies = {
        name: {field: value for field, value in own.items() if field not in ("metrics", "shares")}
        for name, own in report["policies"].items()
    }
    more = {name: value for name, value in (("measured", measured), ("encrypted", report.get("encrypted"))) if value}
    reported = {name: report[name] for name in _REPORTED if report.get(name) is not None}
    return task_card(
        task,
        f"{task.name}-router",
        policy["metrics"],
        policy["shares"],
        {"command": f"`{command}`", "seed": seed, "inputs of the report": report["inputs"]},
        report=rounded(reported | {"policies": policies} | more),
        figure="curve.png",
    )


@refuses_unknown
def task_card(
    task: Task,
    name: str,
    metrics: Mapping[str, float],
    shares: Sequence[float],
    training: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    figure: str | None = None,
) -> SecureRouterModelCardData:
    """
    The card's data of a pool that was evaluated on a task's validation split.

    Args:
        task ([`Task`]): The task; GLUE's are named as the Hub names them.
        name (`str`): The model's name.
        metrics (`Mapping`): Values of the task's metrics.
        shares (K numbers): Share of the inputs that each expert served.
        training (`Mapping`): Rows of the card's table of the training.
        report (`Mapping`, *optional*): The report, rounded as the card shows it.
        figure (`str`, *optional*): Name of the file of the report's figure.
    """
    origin: dict[str, Any] = {"dataset_type": task.hub_id or task.name, "dataset_name": task.name}
    if task.is_glue:
        origin |= {"dataset_name": f"GLUE {task.name}", "dataset_config": task.name}
    return SecureRouterModelCardData(
        model_name=name,
        language="en" if task.hub_id else None,
        datasets=[task.hub_id] if task.hub_id else None,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_split="validation",
                metric_type=metric,
                metric_value=round(value, 4),
                **origin,
            )
            for metric, value in metrics.items()
        ],
        securerouter={
            "routing_shares": [round(share, 4) for share in shares],
            "training": dict(training),
            **{key: value for key, value in (("report", report), ("figure", figure)) if value is not None},
        },
    )


def rounded(value: Any) -> Any:
    """A JSON-able value with all numbers in it rounded to four digits behind the point."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
