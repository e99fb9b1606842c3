# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whole runs: from the rows of a data set to a routed pool with its costs, report and card.

| file | what it gives |
| --- | --- |
| **What a run reads and leaves** | |
| `tasks` | `Task`, the description of a data set; `TASKS`, those of GLUE |
| `fitting` | `Fit`, `Train`, `Workspace`: what a run and a training loop promise each other |
| `tables` | `read_table`, `read_split`: rows of CSV, JSON lines, Parquet and `datasets` folders |
| `arguments` | `DataArguments`, `RunArguments`, `make_parser`, `command_line` |
| `argument_values` | `check_values`: numbers that no run can have |
| `packages` | `check_packages`: of the extra `train` |
| `script` | `run_script`: how a training script ends, and what it prints of warnings |
| `own_data` | `OwnData`: a user's own files, their columns and labels |
| `data` | `open_data`, `tokenize`, `split_rows`, `perturb`, `shortened` |
| `row_parts` | `split_training_rows`, `check_count`, `check_validation`: of the experts, the router and its tuning |
| `artifacts` | `once`, `once_tensors`, `save_once`: files that are made once; `announce` |
| `half_precision` | `announce_bfloat16`: what a CPU has for it |
| `prediction` | `expert_inputs`, `predict`, `decide`, `to_device` |
| **The pieces** | |
| `distillation` | `expert_loss`, `distillation_rows`, `Follower`, `distil_layers`, `widest_value` |
| `calibration` | `fit_temperatures`, `fold_temperature`, `calibration_report` |
| `vocabulary` | `read_tokens_of`, `translate_embeddings`: an expert that reads another tokenizer's tokens |
| `experts` | `plan_pool`, `train_pool`, `load_expert` |
| `closed_form_router` | `fit_closed_form_router` |
| `router_training` | `train_router`, `summarize_rows` |
| `shared_encoder` | `shared_expert`, `refuse_another_encoder`: whose encoder the router of a run reads |
| `costs` | `measure_costs`, `measure_routed`, `measure_expert` |
| `head_pruning` | `measure_importance`, `prune` |
| `score_scaling` | `measure_scores`, `scale_down_queries` |
| `fit_with_trainer` | `trainer_fit`, `parse_args`: one loop; another is `training/run_glue_no_trainer.py` |
| `encrypted_check` | `encrypted_logits`, `compare_with_clear`, `check_pool` |
| `cascade` | `cascade_scores`: the baseline of routers |
| `card` | `card_data`, `task_card` |
| `results` | `publish`: the table of tasks |
| `pushing` | `push_run`: to the Hub |
| **The runs** | |
| `routed_pool` | `RoutedPoolRun` |
| `cotrained_pool` | `CotrainedRun`: experts of reduced precision, with fewer heads or cheaper functions |
| `demo_pool` | `DemoRun`: the embedded checkpoint |
| `sweep` | `sweep`: other pools and other costs |
| `router_comparison` | `compare_routers`: by what they read; and a cascade |
| `quota_accuracy` | `quota_accuracies`: what quotas cost in accuracy |
| `rounding` | `errors_by_place`: what truncation changes in logits |

The scripts in `training/` read arguments and call these. A file imports files above it in this table and the package
below `recipes`, and never `cli`.
"""
