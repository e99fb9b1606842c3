# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a card says of a run."""

from __future__ import annotations

from huggingface_hub import EvalResult

from hf_securerouter.model_card import SecureRouterModelCardData


def card_data(task, args, report, policy, measured, command):
    """What the card says of a run."""
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="nyu-mll/glue",
            dataset_name=f"GLUE {task.name}",
            dataset_config=task.name,
            dataset_split="validation",
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in policy["metrics"].items()
    ]
    training = {"command": f"`{command}`", "seed": args.seed, "inputs of the report": report["inputs"]}
    policies = {
        name: {field: value for field, value in own.items() if field not in ("metrics", "shares")}
        for name, own in report["policies"].items()
    }
    more = {name: value for name, value in (("measured", measured), ("encrypted", report.get("encrypted"))) if value}
    told = {name: report[name] for name in _REPORTED if name in report}
    return SecureRouterModelCardData(
        model_name=f"{task.name}-router",
        language="en",
        datasets=["nyu-mll/glue"],
        eval_results=results,
        securerouter={
            "routing_shares": [round(share, 4) for share in policy["shares"]],
            "training": training,
            "report": rounded(told | {"policies": policies} | more),
            "figure": "curve.png",
        },
    )


def rounded(value):
    """A JSON-able value with its fractions cut to four digits."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


_REPORTED = (
    "metric",
    "largest_score",
    "largest_score_interval",
    "experts",
    "routed_costs",
    "audc",
    "audc_interval",
    "qnc",
    "variants",
)
