# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
The table of tasks, written from the folders of finished runs; runs of one task with different seeds become one row.

    python training/results.py runs/mrpc-42 runs/mrpc-43 runs/rte-42 --results_file model_cards/results.json

Beside the JSON file go the table for readers, with the commands, and a folder for each task with its card, figure and
report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_securerouter.recipes.results import publish
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the table of tasks from the folders of finished runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of finished runs")
    parser.add_argument("--results_file", type=Path, default=Path("model_cards/results.json"), help="the JSON file")
    args = parser.parse_args(argv)
    publish(args.results_file, args.folders)


if __name__ == "__main__":
    run_script(main)
