# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Made-up data and the arguments of small runs on them."""

import random

import run_glue
import run_glue_no_trainer

from hf_securerouter.recipes.routed_pool import RoutedPoolRun


TRAINER = ("--report_to", "none", "--disable_tqdm", "true")
SCRIPTS = {"trainer": (run_glue, TRAINER), "loop": (run_glue_no_trainer, ())}
KINDS = [["bad", "dull", "awful", "slow"], ["good", "bright", "great", "fast"]]


def made_up_rows(count, seed, regression=False):
    """Pairs that are equivalent when both adjectives are of one kind."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        first, second = rng.randrange(2), rng.randrange(2)
        label = 5.0 * (first == second) if regression else int(first == second)
        texts = [f"the film is {rng.choice(KINDS[kind])}" for kind in (first, second)]
        rows.append({"sentence1": texts[0], "sentence2": texts[1], "label": label, "idx": index})
    return rows


def model_arguments(made, output, *more):
    """Two experts cut from the checkpoint, costs that are given, and as little training as possible."""
    return [
        *("--output_dir", str(output), "--model_name_or_path", str(made / "checkpoint"), "--expert_layers", "1", "3"),
        *("--max_seq_length", "16", "--expert_costs", "1", "4", "--num_train_epochs", "1"),
        *("--distillation_epochs", "1", "--router_num_train_epochs", "2", "--quota_batch_size", "8"),
        *("--bootstrap_resamples", "20", "--per_device_train_batch_size", "8", "--use_cpu", *more),
    ]


def arguments(made, output, *more, task="mrpc"):
    """Those of a run on made-up data of a GLUE task."""
    return ["--task_name", task, "--data_dir", str(made / "data"), *model_arguments(made, output, *more)]


def loop_run(argv, kind=RoutedPoolRun, **seams):
    """A run of `run_glue_no_trainer.py`, not started yet."""
    args, options = run_glue_no_trainer.parse_args(argv)
    return kind(args, run_glue_no_trainer.Loop(options), "python training/run_glue_no_trainer.py", **seams)
