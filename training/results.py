# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
The table of tasks, written from the folders of finished runs; runs of one task with different seeds become one row.

    python training/results.py runs/mrpc-42 runs/mrpc-43 runs/rte-42 --results_file model_cards/results.json
"""

import argparse
import json
from pathlib import Path

from hf_securerouter import SecureRouterValueError
from hf_securerouter.reports import write_json


FIELDS = (
    "task",
    "metric",
    "seeds",
    "experts",
    "largest_score",
    "routed_score",
    "relative_cost",
    "relative_bytes",
    "audc",
    "qnc",
    "command",
)


def mean_row(rows):
    """One row of several seeds: numbers are means, None where one of them is missing."""
    if any(set(row) != set(FIELDS) for row in rows):
        raise SecureRouterValueError(f"`rows` should have the fields {', '.join(FIELDS)}, got {sorted(rows[0])}.")

    def mean(values):
        return None if any(value is None for value in values) else sum(values) / len(values)

    merged = dict(rows[0]) | {"seeds": sorted(seed for row in rows for seed in row["seeds"])}
    for name in ("largest_score", "routed_score", "relative_cost", "relative_bytes", "qnc"):
        merged[name] = mean([row[name] for row in rows])
    merged["audc"] = {name: mean([row["audc"][name] for row in rows]) for name in rows[0]["audc"]}
    return merged


def update_results(path, rows):
    """Put the rows into a results file, one for each task, in the place of earlier rows of the same tasks."""
    path = Path(path)
    tasks = {row["task"]: row for row in json.loads(path.read_text())["tasks"]} if path.exists() else {}
    for task in dict.fromkeys(row["task"] for row in rows):
        tasks[task] = mean_row([row for row in rows if row["task"] == task])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"tasks": [tasks[task] for task in sorted(tasks)]}, path)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write the table of tasks from the folders of finished runs.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--results_file", type=Path, default=Path("model_cards/results.json"))
    args = parser.parse_args(argv)
    update_results(args.results_file, [json.loads((folder / "row.json").read_text()) for folder in args.folders])


if __name__ == "__main__":
    main()
