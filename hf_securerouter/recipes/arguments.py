# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a run, named as in transformers' examples."""

from __future__ import annotations

import os
import shlex
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Self

from transformers import HfArgumentParser

from hf_securerouter.known_arguments import refuses_unknown, refuses_unknown_init
from hf_securerouter.recipes.tasks import TASKS


# Places, which may differ between a run and the one that it resumes.
_PLACES = (
    "output_dir",
    "cache_dir",
    "results_file",
    "costs_dir",
    "data_dir",
    "dataset_dir",
    "train_file",
    "validation_file",
)

# Arguments of the Trainer, or of the script without it, that change the weights, beside the rows of an update: a run
# may not go on with others.
_TRAINING = (
    "data_seed",
    "fp16",
    "neftune_noise_alpha",
    "max_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "train_sampling_strategy",
    "auto_find_batch_size",
    "dataloader_drop_last",
    "ignore_data_skip",
    "max_train_steps",
    "mixed_precision",
    "warmup_ratio",
)


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field that [`~transformers.HfArgumentParser`] makes an option of.

    Args:
        default: Its value where the option is not passed.
        help (`str`): What `--help` says.
        metadata: What else `ArgumentParser.add_argument` takes, such as `choices`.
    """
    metadata |= {"help": help.replace("%", "%%")}  # argparse formats it
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and a script's docstring as it is written."""


@refuses_unknown
def make_parser(doc: str | None, *kinds: Any) -> HfArgumentParser:
    """
    A parser whose `--help` shows a script's docstring.

    Args:
        doc (`str`): The docstring.
        kinds (dataclasses): The groups of arguments.
    """
    description = (doc or "").strip()
    # Without abbreviations, so that a token can be told by the name of its option.
    return HfArgumentParser(kinds, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


@refuses_unknown_init
@dataclass
class DataArguments:
    """Where texts and labels come from: a GLUE task, or files of the user's own."""

    task_name: str | None = option(None, "The GLUE task; leave it out for data of your own.", choices=sorted(TASKS))
    train_file: str | None = option(
        None, "CSV, JSON lines or Parquet with a text (or two) and a label; with `task_name`, the task's columns."
    )
    validation_file: str | None = option(None, "The same for the validation split.")
    dataset_dir: str | None = option(
        None, "Instead of both files: a folder of `DatasetDict.save_to_disk`, or with train.csv and validation.csv."
    )
    dataset_name: str | None = option(None, "Name of your data in reports and cards; default: the training file's.")
    text_column: str | None = option(None, "Column of the text; default: `text`, or another usual name.")
    text_pair_column: str | None = option(None, "Column of the second text of pairs; default: `text_pair`, if any.")
    label_column: str | None = option(
        None, "Column of the label, a string, an integer or, for a regression, a float; default: `label`."
    )
    data_dir: str | None = option(
        None, "Folder with TASK/train.jsonl[.gz] and TASK/validation.jsonl[.gz] of GLUE; default: the Hub's."
    )
    cache_dir: str | None = option(None, "Where downloads are kept.")
    max_train_samples: int | None = option(None, "Use only this many training rows, the first ones.")
    max_eval_samples: int | None = option(None, "Use only this many validation rows, the first ones.")


@refuses_unknown_init
@dataclass
class RunArguments(DataArguments):
    """Data, experts, router and budget of a run."""

    model_name_or_path: str | None = option(None, "Checkpoint of the largest expert, which `expert_layers` cuts.")
    experts: list[str] = option([], "Ids or folders of the experts, the largest last, instead of `expert_layers`.")
    expert_layers: list[int] = option([], "Depths that `model_name_or_path` is cut to, such as 2 4 6.")
    expert_max_lengths: list[int] = option(
        [], "Tokens of an input that each expert reads, such as 64 128; default: `max_seq_length`."
    )
    narrow_expert: bool = option(False, "Add an expert of 2 layers and width 128, distilled from the largest.")
    router_name_or_path: str | None = option(None, "The router's own encoder; default: the cheapest expert's.")
    share_router_encoder: bool = option(
        True,
        "Let the router read an expert's encoder itself, not a copy that is trained further: that of the cheapest "
        "expert, under encryption of those whose head reads the row that a router reads.",
    )
    router_objective: str = option(
        "utility", "Objective of the saved model's router; both are compared.", choices=["utility", "gumbel"]
    )
    alpha: float = option(0.01, "Weight of the load balancing loss.")
    beta: float | None = option(None, "Weight of the cost loss; default: 0.13 over the largest expert's cost.")
    temperature: float = option(1.0, "Temperature of the Gumbel-softmax at the start.")
    min_temperature: float = option(0.5, "Temperature that annealing ends at.")
    router_num_train_epochs: float = option(
        20.0, "Epochs of the router, unless it is fitted in closed form: a utility router that shares an encoder is."
    )
    cross_fit_folds: int = option(
        0,
        "With 2 or more, the router learns from experts trained without the fold that they answer, and the final "
        "experts are trained on all rows; with 0, up to three tenths of the training rows are held out from experts.",
    )
    reinitialized_layers: int | None = option(
        None, "Last layers of the largest expert that start from random weights, which helps after sentence embedding."
    )
    distillation_epochs: float = option(3.0, "Epochs of the experts that learn from the largest.")
    perturbed_copies: int = option(1, "Perturbed copies of the training data that these experts learn from as well.")
    self_distillation: bool = option(
        False, "Let the largest expert learn once more, from its own answers, before the others learn from it."
    )
    distillation_learning_rate: float | None = option(
        None, "Learning rate of the experts that learn from the largest; default: `learning_rate`."
    )
    narrow_learning_rate: float = option(1e-3, "Learning rate of the narrow expert.")
    expert_costs: list[float] = option([], "Seconds of each expert; default: measured under encryption.")
    costs_dir: str | None = option(
        None, "Folder of measured costs, which runs with experts of the same shapes share; default: the output folder."
    )
    budget_seconds: float | None = option(
        None, "Mean seconds of a query, router included; default: half of the largest expert's."
    )
    quota_batch_size: int = option(32, "Queries of one batch, which the quotas sum to.")
    profile_seq_length: int = option(
        128, "Tokens of the inputs that costs are measured on; no more than `max_seq_length`."
    )
    max_seq_length: int = option(128, "Longest input in tokens.")
    encrypted_eval_samples: int = option(
        0, "Classify this many validation rows, the first ones, on secret shares as well, and report the differences."
    )
    bootstrap_resamples: int = option(1000, "Draws for the 95 % intervals.")
    results_file: str | None = option(None, "JSON file that the task's row of results is written to as well.")

    # Taken over from the script's own training arguments.
    output_dir: str = field(init=False, default="")
    seed: int = field(init=False, default=42)
    num_train_epochs: float = field(init=False, default=3.0)
    learning_rate: float = field(init=False, default=5e-5)
    router_learning_rate: float = field(init=False, default=1e-3)
    bf16: bool | None = field(init=False, default=None)
    training: dict[str, Any] = field(init=False, default_factory=dict)

    def adopt(self, training_args: Any) -> Self:
        """Take over the fields that the script's training arguments have as well.

        Args:
            training_args: With `output_dir`, `seed`, `num_train_epochs`, `learning_rate`, `bf16`, and
                `router_learning_rate`, which may be None; others that change the weights are kept as `training`.
        """
        for name in ("output_dir", "seed", "num_train_epochs", "learning_rate"):
            setattr(self, name, getattr(training_args, name))
        if training_args.router_learning_rate is not None:
            self.router_learning_rate = training_args.router_learning_rate
        self.bf16 = training_args.bf16 or None  # None, as in a run that was started before there was this field
        found = {name: getattr(training_args, name) for name in _TRAINING if hasattr(training_args, name)}
        self.training = {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}
        rows = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
        self.training["rows_of_an_update"] = rows * int(os.environ.get("WORLD_SIZE", "1"))
        self.training["arguments"] = type(training_args).__name__  # the two scripts train in loops of their own
        return self

    def fingerprint(self) -> dict[str, Any]:
        """What a run must have in common with the one that it resumes, as `arguments.json` holds it."""
        values = asdict(self)
        for name in _PLACES:
            values.pop(name)
        return values

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """The names of arguments by which another run differs.

        Args:
            found (`Mapping`): The fingerprint of that run. An argument that it lacks, because it was started before
                there was that argument, counts as None; one of `training` that it lacks is not compared. One that
                this run lacks is of another kind of run.
        """
        own = self.fingerprint()
        training, before = own.pop("training"), found.get("training", {})
        names = [name for name, value in own.items() if found.get(name) != value]
        names += found.keys() - own.keys() - {"training"}
        return sorted(names + [name for name, value in training.items() if before.get(name, value) != value])


@refuses_unknown
def command_line(script: str, argv: Sequence[str]) -> str:
    """The command for cards: files and folders outside of the working directory by their names only, and no token.

    Args:
        script (`str`): The script's path in the repository.
        argv (sequence of `str`): Its arguments.
    """
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's, and Accelerate's
    command = ["python"] if processes == "1" else ["torchrun", "--nproc_per_node", processes]
    command.append(script)
    is_token = False
    for part in argv:
        name, equals, value = part.partition("=") if part.startswith("-") else ("", "", part)
        if name:
            is_token = name.endswith("token")  # `--hub_token` and its spellings
        if not is_token:
            command.append(name + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(command)
