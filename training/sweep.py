# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
How routing follows the pool and its costs: pool sizes 2 to 5, and six profiles of the costs of one pool.

    python training/sweep.py --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py`, trains those of its experts that are missing, and then only routers, on the
experts' answers. `sweep.json` holds shares and score of every variant on the tuning rows; the validation split is not
read. `sweep.md` is the same for readers; with `--results_file` both are copied beside that file.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_securerouter.files import write_text
from hf_securerouter.recipes.arguments import RunArguments, command_line
from hf_securerouter.recipes.fit_with_trainer import parse_args, trainer_fit
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.script import run_script
from hf_securerouter.recipes.sweep import sweep, table


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv, RunArguments, __doc__)
    # A router is trained in less time than a checkpoint is worth, and each variant begins anew.
    training_args.save_strategy = "no"
    run = RoutedPoolRun(args, trainer_fit(training_args), "")
    folders, rows, parts = run.experts_and_answers(run.load_rows("train"))
    found = sweep(run, folders, rows, parts, run.costs(folders)["seconds"])
    page = run.folder / "sweep.md"
    write_text(table(run, found, command_line("training/sweep.py", argv)), page)
    if args.results_file:
        for path in (page, run.folder / "sweep.json"):
            shutil.copyfile(path, Path(args.results_file).parent / path.name)
    return found


if __name__ == "__main__":
    run_script(main)
