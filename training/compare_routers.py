# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Which router is best: of the margin alone, of the experts' disagreement, of every layer; and a cascade.

    python training/compare_routers.py --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py`, trains those of its experts that are missing, and compares routers on training
rows that no expert has seen. The validation split is not read. `routers.json` in the output folder holds the figures,
`routers.md` is the same for readers; with `--results_file` that page is copied beside the file.
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
from hf_securerouter.recipes.router_comparison import compare_routers, table
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv, RunArguments, __doc__)
    run = RoutedPoolRun(args, trainer_fit(training_args), "")
    folders, rows, parts = run.experts_and_answers(run.load_rows("train"))
    found = compare_routers(run, folders, rows, parts)
    page = run.folder / "routers.md"
    write_text(table([found], command_line("training/compare_routers.py", argv)), page)
    if args.results_file:
        shutil.copyfile(page, Path(args.results_file).parent / page.name)
    return found


if __name__ == "__main__":
    run_script(main)
