# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The table of tasks, from the folders of finished runs."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

from hf_securerouter import SecureRouterValueError
from hf_securerouter.files import write_json
from hf_securerouter.model_card import describe_variant


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


COPIED = ("README.md", "curve.png", "report.json")


def mean_row(rows):
    """One row of several seeds: numbers are means, None where one of them is missing; `spread` has the standard
    deviations of the scores and of what is lost."""
    if any(set(row) - {"variants"} != set(FIELDS) for row in rows):
        raise SecureRouterValueError(f"`rows` should have the fields {', '.join(FIELDS)}, got {sorted(rows[0])}.")

    def mean(values):
        return None if any(value is None for value in values) else sum(values) / len(values)

    merged = dict(rows[0]) | {"seeds": sorted(seed for row in rows for seed in row["seeds"])}
    for name in ("largest_score", "routed_score", "relative_cost", "relative_bytes", "qnc"):
        merged[name] = mean([row[name] for row in rows])
    merged["audc"] = {name: mean([row["audc"][name] for row in rows]) for name in rows[0]["audc"]}
    if len(rows) > 1:
        spread = {name: [row[name] for row in rows] for name in ("largest_score", "routed_score")}
        spread["lost"] = [row["largest_score"] - row["routed_score"] for row in rows]
        merged["spread"] = {name: statistics.stdev(values) for name, values in spread.items()}
    return merged


def publish(results_file, folders):
    """Put runs into a results file, one row for each task, in the place of earlier rows of the same tasks; the card,
    figure and report of a task's first run go into a folder of its name."""
    path, folders = Path(results_file), [Path(folder) for folder in folders]
    rows = [json.loads((folder / "row.json").read_text()) for folder in folders]
    tasks = {row["task"]: row for row in json.loads(path.read_text())["tasks"]} if path.exists() else {}
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [index for index, row in enumerate(rows) if row["task"] == task]
        tasks[task] = mean_row([rows[index] for index in own])
        (path.parent / task).mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            shutil.copyfile(folders[own[0]] / name, path.parent / task / name)
    merged = [tasks[task] for task in sorted(tasks)]
    write_json({"tasks": merged}, path)
    path.with_suffix(".md").write_text(table(merged), encoding="utf-8")


def table(rows):
    """The results as a page in Markdown."""

    def number(value, digits):
        return "–" if value is None else f"{value:.{digits}f}"

    def score(row, name, value):
        return number(value, 2) + (f" ± {row['spread'][name]:.2f}" if "spread" in row else "")

    header = ["task", "metric", "experts", "cut", "largest", "routed", "lost", "relative cost", "relative bytes"]
    header += ["AUDC utility", "gumbel", "zero router", "oracle", "QNC", "seeds"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        lost = row["largest_score"] - row["routed_score"]
        lines.append(
            [f"[{row['task']}]({row['task']}/README.md)", row["metric"].replace("+", " + "), "; ".join(row["experts"])]
            + [" / ".join(f"{share:.0%}" for share in row["cut"])]
            + [score(row, name, row[name]) for name in ("largest_score", "routed_score")]
            + [score(row, "lost", lost)]
            + [number(row[name], 3) for name in ("relative_cost", "relative_bytes")]
            + [number(row["audc"][name], 4) for name in ("utility", "gumbel", "zero", "oracle")]
            + ["never" if row["qnc"] is None else number(row["qnc"], 3), ", ".join(map(str, row["seeds"]))]
        )
    commands = [f"```bash\n{row['command']}\n```" for row in rows]
    return "\n".join(
        [
            _INTRODUCTION,
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            *variant_lines(rows),
            "## Commands",
            "",
            "\n\n".join(commands),
            "",
        ]
    )


def variant_lines(rows):
    """The experts that co-training tried, beside the exact ones, if there are any."""
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
        exact = {}
        for variant in row.get("variants", ()):
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


_VARIANTS = """## Variants

What co-training tried for each expert, on training rows that no expert has seen: `lost`, cost and bytes are \
against the exact expert in the line above, `of its bounds` is the largest value over its bound, which has to be 1 or \
less. The last one within its bounds that lost no more than `--most_lost` points was taken.
"""


_INTRODUCTION = """# Routed pools on GLUE

Scores are 100 times the metric on the validation split, which is read once, at the end; of two metrics the \
mean. `cut` is the share of its inputs that are longer than what each expert reads. `relative cost` is what a batch \
of 32 inputs of 128 tokens takes the routed pool under encryption, router included and with its public quotas, over \
what it takes the largest expert alone, in measured online seconds; `relative bytes` is the same in bytes between the \
servers. AUDC is the area under score over cost; QNC is the cost at which the score of the largest expert is \
reached. Of several seeds there are means, with the standard deviation behind ±. The page of each task has 95 % \
intervals and the figure, of its first seed.
"""
