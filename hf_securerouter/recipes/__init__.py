# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whole runs: from rows of a task to a routed pool with its costs, report and card.

`tasks`, `data`, `arguments`, `artifacts` and `prediction` are what a run reads and leaves; `experts`, `distillation`,
`closed_form_router` and `costs` its pieces; `routed_pool` is the run, `cotrained_pool` the one of narrow experts
(`head_pruning`, `score_scaling`), `demo_pool` that of the embedded checkpoint. `encrypted_check`, `card`, `results`
and `sweep` say what came out. The scripts in `training/` only read arguments and call these.
"""
