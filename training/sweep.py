# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
How routing follows the pool and its costs: pool sizes 2 to 5, and six profiles of the costs of one pool.

    python training/sweep.py --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py`, trains what is missing of its experts, and then only routers, on their answers.
`sweep.json` holds the shares and the score of each on the tuning part: the validation split is not read. Every variant
is written as it ends. `sweep.md` is the same for readers; with `--results_file` both are put beside that file.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hf_securerouter.recipes.arguments import command_line
from hf_securerouter.recipes.data import load_split
from hf_securerouter.recipes.fit_with_trainer import parse_args, trainer_fit
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.sweep import sweep, table


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv)
    args.adopt(training_args)
    # Without checkpoints: a router is trained in less time than a checkpoint is worth, and each one anew.
    training_args.save_strategy = "no"
    run = RoutedPoolRun(args, trainer_fit(args, training_args), "")
    folders, answered, parts = run.experts_and_answers(load_split(args, "train"))
    found = sweep(run, folders, answered, parts, run.costs(folders)["seconds"])
    page = run.folder / "sweep.md"
    page.write_text(table(run, found, command_line("training/sweep.py", argv)), encoding="utf-8")
    if args.results_file:
        for path in (page, run.folder / "sweep.json"):
            shutil.copyfile(path, Path(args.results_file).parent / path.name)
    return found


if __name__ == "__main__":
    main()
