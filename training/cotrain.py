# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Experts made for encryption: those of a finished run, taught to do with cheaper functions what they did before.

    python training/run_glue.py --task_name mrpc ... --output_dir mrpc-exact
    python training/cotrain.py --exact_dir mrpc-exact --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py` and does what it does, but for the experts. Each of them takes the steps of
`--variants` one after the other, to a narrower precision, to fewer heads and neurons or to cheaper functions: a copy
learns attention, hidden states and outputs from the exact expert, layer by layer, starting from the last copy, and
the steps end with the first that loses more than `--most_lost` points on the rows which no expert has seen. A copy
computes with the weights that are shared, rounds at random as shares do, and is fined for values beyond its bounds;
at the end heads whose scores come too near to theirs are scaled down. One that still has such values is not taken,
but the next step may bring them down. The last copy that is good enough is taken. `variants.json` lists what was
tried, with scores and measured costs.
"""

from __future__ import annotations

import sys

from hf_securerouter.recipes.arguments import command_line
from hf_securerouter.recipes.cotrained_pool import CotrainArguments, CotrainedRun
from hf_securerouter.recipes.fit_with_trainer import parse_args, trainer_fit


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv, CotrainArguments)
    args.adopt(training_args)
    return CotrainedRun(args, trainer_fit(args, training_args), command_line("training/cotrain.py", argv))()


if __name__ == "__main__":
    main()
