# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Trains, measures, tunes and reports a routed pool with the Trainer, for a GLUE task or for data of your own.

    python training/run_glue.py --task_name mrpc --model_name_or_path google-bert/bert-base-uncased \
        --expert_layers 2 6 12 --narrow_expert --output_dir mrpc-router

    python training/run_glue.py --train_file reviews.csv --validation_file reviews-dev.csv \
        --text_column text --label_column label --model_name_or_path google-bert/bert-base-uncased \
        --expert_layers 2 6 12 --narrow_expert --output_dir reviews-router

The output folder is a checkpoint with its card, and holds `report.json`, `curve.png` and `row.json`. A run that was
stopped goes on when it is started again with the same arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hf_securerouter.recipes.arguments import RunArguments, command_line
from hf_securerouter.recipes.fit_with_trainer import parse_args, trainer_fit
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv, RunArguments, __doc__)
    run = RoutedPoolRun(args, trainer_fit(training_args), command_line("training/run_glue.py", argv))
    report = run()
    if training_args.push_to_hub and training_args.should_save:
        name = training_args.hub_model_id or run.folder.name
        run.push(name, training_args.hub_token, training_args.hub_private_repo)
    return report


if __name__ == "__main__":
    run_script(main)
