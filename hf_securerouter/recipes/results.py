# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The table of tasks, from the folders of finished runs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.files import write_atomically, write_json, write_text
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.model_card import describe_variant
from hf_securerouter.number_format import current_precision
from hf_securerouter.recipes.tasks import TASKS


Result = dict[str, Any]  # one row, as `row.json` holds it

FIELDS = (
    "task",
    "metric",
    "seeds",
    "experts",
    "cut",
    "largest_score",
    "routed_score",
    "relative_cost",
    "relative_bytes",
    "audc",
    "qnc",
    "command",
)
OPTIONAL = {"variants", "labels"}  # of co-trained experts, and of a user's own data

COPIED = ("README.md", "curve.png", "report.json")

# Table 2 of the SecureRouter paper: the score of its BERT-large, the score of its routed pool, and its speed-up.
PAPER = {
    "cola": (63.35, 59.10, 1.22),
    "mnli": (86.64, 86.73, 1.21),
    "mrpc": (91.62, 91.78, 1.16),
    "qnli": (92.24, 92.00, 1.20),
    "qqp": (88.08, 88.05, 1.95),
    "rte": (75.45, 75.09, 1.49),
    "sst2": (93.46, 93.10, 1.73),
    "stsb": (90.36, 89.02, 1.30),
}


def mean_row(rows: Sequence[Result]) -> Result:
    """
    One row of the runs of several seeds.

    Args:
        rows (sequence of `dict`): Of one task.

    Returns:
        `dict`: Like the first row, with means of the numbers, None where a run lacks one; of several rows also
        `spread`, the standard deviations of the scores and of their difference.

    Raises:
        `SecureRouterValueError`: A row has other fields than `FIELDS`.
    """
    if any(set(row) - OPTIONAL != set(FIELDS) for row in rows):
        raise SecureRouterValueError(f"`rows` should have the fields {', '.join(FIELDS)}, got {sorted(rows[0])}.")

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    merged = dict(rows[0]) | {"seeds": sorted(seed for row in rows for seed in row["seeds"])}
    for name in ("largest_score", "routed_score", "relative_cost", "relative_bytes", "qnc"):
        merged[name] = mean([row[name] for row in rows])
    merged["audc"] = {name: mean([row["audc"][name] for row in rows]) for name in rows[0]["audc"]}
    if len(rows) > 1:
        spread = {name: [row[name] for row in rows] for name in ("largest_score", "routed_score")}
        spread["lost"] = [row["largest_score"] - row["routed_score"] for row in rows]
        merged["spread"] = {name: statistics.stdev(values) for name, values in spread.items()}
    return merged


@refuses_unknown
def publish(results_file: str | os.PathLike, folders: Sequence[str | os.PathLike]) -> None:
    """
    Puts runs into a results file and its page, one row for each task, in the place of earlier rows of the same tasks.
    Card, figure and report of a task's first run are copied into a folder of the task's name beside the file.

    Args:
        results_file (`str` or `os.PathLike`): A JSON file; the page is the same name with `.md`.
        folders (sequence of `str` or `os.PathLike`): The output folders of finished runs.

    Raises:
        `SecureRouterValueError`: A run's row has other fields than `FIELDS`.
    """
    path, sources = Path(results_file), [Path(folder) for folder in folders]
    rows = [json.loads((folder / "row.json").read_text()) for folder in sources]
    tasks = {row["task"]: row for row in json.loads(path.read_text())["tasks"]} if path.exists() else {}
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [index for index, row in enumerate(rows) if row["task"] == task]
        tasks[task] = mean_row([rows[index] for index in own])
        (path.parent / task).mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            with write_atomically(path.parent / task / name) as temporary:
                shutil.copyfile(sources[own[0]] / name, temporary)
    merged = [tasks[task] for task in sorted(tasks)]
    write_json({"tasks": merged}, path)
    write_text(table(merged), path.with_suffix(".md"))


def table(rows: Sequence[Result]) -> str:
    """The results as a page in Markdown."""

    def number(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    def score(row: Result, name: str, value: float) -> str:
        return number(value, 2) + (f" ± {row['spread'][name]:.2f}" if "spread" in row else "")

    def task(row: Result) -> str:
        link = f"[{row['task']}]({row['task']}/README.md)"
        return f"{link} ({', '.join(row['labels'])})" if row.get("labels") else link

    header = ["task", "metric", "experts", "cut", "largest", "routed", "lost", "relative cost", "relative bytes"]
    header += ["AUDC utility", "gumbel", "cascade", "zero router", "oracle", "QNC", "seeds"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        lost = row["largest_score"] - row["routed_score"]
        lines.append(
            [task(row), row["metric"].replace("+", " + "), "; ".join(row["experts"])]
            + [" / ".join(f"{share:.0%}" for share in row["cut"])]
            + [score(row, name, row[name]) for name in ("largest_score", "routed_score")]
            + [score(row, "lost", lost)]
            + [number(row[name], 3) for name in ("relative_cost", "relative_bytes")]
            + [number(row["audc"].get(name), 4) for name in ("utility", "gumbel", "cascade", "zero", "oracle")]
            + ["never" if row["qnc"] is None else number(row["qnc"], 3), ", ".join(map(str, row["seeds"]))]
        )
    commands = [f"```bash\n{row['command']}\n```" for row in rows]
    return "\n".join(
        [
            f"# Routed pools{' on GLUE' if all(row['task'] in TASKS for row in rows) else ''}\n\n{_INTRODUCTION}",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            *variant_lines(rows),
            *paper_lines(rows),
            "## Commands",
            "",
            "\n\n".join(commands),
            "",
        ]
    )


def variant_lines(rows: Sequence[Result]) -> list[str]:
    """A table in Markdown of the experts that co-training tried, beside the exact ones; no line if there are none."""
    header = [
        "task",
        "expert",
        "computes",
        "score",
        "lost",
        "of its bounds",
        "relative cost",
        "relative bytes",
        "rounds",
    ]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        exact: dict[int, Result] = {}
        for variant in row.get("variants", ()):
            variant = variant | {"precision": current_precision(variant["precision"])}
            first = exact.setdefault(variant["expert"], variant)
            lines.append([row["task"], str(variant["expert"]), describe_variant(variant, first)])
            lines[-1] += [f"{100 * score:.2f}" for score in (variant["score"], first["score"] - variant["score"])]
            lines[-1] += [f"{variant['widest']:.2f}" if "widest" in variant else ""]
            if "bytes" in variant:
                lines[-1] += [f"{variant[unit] / first[unit]:.3f}" for unit in ("seconds", "bytes")]
                lines[-1] += [str(variant["rounds"])]
    if len(lines) == 2:
        return []
    return [_VARIANTS, *(f"| {' | '.join(line)} |" for line in lines), ""]


def paper_lines(rows: Sequence[Result]) -> list[str]:
    """A table in Markdown of the runs whose costs were measured, beside the paper's; no line if there are none."""
    header = ["task", "paper: largest", "routed", "lost", "speed-up", "here: largest", "routed", "lost", "speed-up"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        if row["task"] in PAPER and row["relative_cost"]:
            *scores, theirs = PAPER[row["task"]]
            sides = [(*scores, theirs), (row["largest_score"], row["routed_score"], 1 / row["relative_cost"])]
            lines.append([row["task"]])
            for largest, routed, speed_up in sides:
                lines[-1] += [f"{largest:.2f}", f"{routed:.2f}", f"{largest - routed:.2f}", f"{speed_up:.2f}"]
    return [_PAPER, *(f"| {' | '.join(line)} |" for line in lines), ""] if len(lines) > 2 else []


_PAPER = """## Beside the paper

Its figures are those of table 2 of *SecureRouter: Encrypted Routing for Efficient Secure Inference*: its largest \
expert is BERT-large, its speed-up is projected from the latency of each expert alone. The speed-up here is measured, \
of a batch under encryption, against the largest expert of the same pool. The paper trains on all of each task's rows.
"""


_VARIANTS = """## Variants

Co-training tried these variants of each expert, on training rows that no expert has seen. `lost`, cost and bytes are \
against the exact expert in the line above; `of its bounds` is the largest value over its bound, which has to be 1 or \
less. The last variant within its bounds that lost no more than `--most_lost` points was taken.
"""


_INTRODUCTION = """\
Scores are 100 times the metric on the validation split, which is read once, at the end; of two metrics the mean. \
`cut` is the share of its inputs that are longer than what each expert reads; an expert with no number of tokens \
reads the pool's `max_seq_length`, 128 unless the command says otherwise. `relative cost` is the measured \
time of a batch of 32 inputs of 128 tokens by the routed pool under encryption, router included and with its public \
quotas, over that of the largest expert alone; `relative bytes` is the same in bytes between the servers. AUDC is the \
area under score over cost; QNC is the cost at which the score of the largest expert is reached. Of several seeds \
there are means, with the standard deviation behind ±. The page of each task has 95 % intervals and the figure, of \
its first seed.
"""
