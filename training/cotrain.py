# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Experts made for encryption: copies of a finished run's experts, distilled to cheaper functions and numbers.

    python training/run_glue.py --task_name mrpc ... --output_dir mrpc-exact
    python training/cotrain.py --exact_dir mrpc-exact --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py` and does the same with other experts: each takes the steps of `--variants` one
after the other, until it loses more than `--most_lost` points on rows that no expert has seen.
`hf_securerouter/recipes/cotrained_pool.py` says how. `variants.json` lists what was tried, with scores and costs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hf_securerouter.recipes.arguments import command_line
from hf_securerouter.recipes.cotrained_pool import CotrainArguments, CotrainedRun
from hf_securerouter.recipes.fit_with_trainer import parse_args, trainer_fit
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv, CotrainArguments, __doc__)
    return CotrainedRun(args, trainer_fit(training_args), command_line("training/cotrain.py", argv))()


if __name__ == "__main__":
    run_script(main)
