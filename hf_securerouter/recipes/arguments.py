# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The arguments that both GLUE scripts share, named as in transformers' examples."""

import os
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_securerouter.recipes.tasks import TASKS


_PLACES = ("output_dir", "cache_dir", "results_file", "costs_dir", "data_dir", "train_file", "validation_file")


def _option(default, help, **kwargs):
    return field(default=default, metadata={"help": help}, **kwargs)


@dataclass
class RunArguments:
    """Data, experts, router and budget of a run."""

    task_name: str = field(metadata={"help": "The GLUE task.", "choices": sorted(TASKS)})
    model_name_or_path: str | None = _option(None, "The largest expert's checkpoint, which `expert_layers` cuts.")
    experts: list[str] = field(
        default_factory=list, metadata={"help": "Ids or folders of the experts, the largest last, instead of cuts."}
    )
    expert_layers: list[int] = field(
        default_factory=list, metadata={"help": "Depths that `model_name_or_path` is cut to, such as 2 4 6."}
    )
    expert_max_lengths: list[int] = field(
        default_factory=list,
        metadata={"help": "Tokens of an input that each expert reads, such as 64 128; default: `max_seq_length`."},
    )
    narrow_expert: bool = _option(False, "Add an expert of 2 layers and width 128, distilled from the largest.")
    router_name_or_path: str | None = _option(None, "The router's own encoder; default: the smallest expert's.")
    share_router_encoder: bool = _option(
        True, "Let the router read the smallest expert's encoder itself, not a copy that is trained further."
    )
    router_objective: str = field(
        default="utility",
        metadata={"help": "Of the saved model; both are compared.", "choices": ["utility", "gumbel"]},
    )
    alpha: float = _option(0.01, "Weight of the load balancing loss.")
    beta: float | None = _option(None, "Weight of the cost loss; default: 0.13 over the largest expert's cost.")
    temperature: float = _option(1.0, "Temperature of the Gumbel-softmax at the start.")
    min_temperature: float = _option(0.5, "Temperature that annealing ends at.")
    router_num_train_epochs: float = _option(
        20.0, "Epochs of the router; none of a utility router that shares an encoder: it is fitted in closed form."
    )
    cross_fit_folds: int = _option(
        0,
        "With 2 or more, the router learns from experts trained without the fold that they answer, and the final "
        "experts are trained on everything; with 0, up to three tenths of the training data are kept from experts.",
    )
    distillation_epochs: float = _option(3.0, "Epochs of the experts that learn from the largest.")
    perturbed_copies: int = _option(1, "Perturbed copies of the training data for them.")
    self_distillation: bool = _option(False, "Let the largest learn once more, from its own answers, before they do.")
    narrow_learning_rate: float = _option(1e-3, "Learning rate of the narrow expert.")
    expert_costs: list[float] = field(
        default_factory=list, metadata={"help": "Seconds of each expert; default: measured under encryption."}
    )
    costs_dir: str | None = _option(
        None, "Folder of measured costs, which runs with experts of the same shapes share; default: the output folder."
    )
    budget_seconds: float | None = _option(
        None, "Mean seconds of a query, router included; default: half of the largest expert's."
    )
    quota_batch_size: int = _option(32, "Queries of one batch, which the quotas sum to.")
    profile_seq_length: int = _option(128, "Tokens of the inputs that costs are measured on.")
    data_dir: str | None = _option(None, "Folder with TASK/train.jsonl[.gz] and TASK/validation.jsonl[.gz].")
    train_file: str | None = _option(None, "JSON lines or CSV with the task's columns; default: the Hub's.")
    validation_file: str | None = _option(None, "The same for the validation split.")
    max_seq_length: int = _option(128, "Longest input in tokens.")
    max_train_samples: int | None = _option(None, "Use only the first so many training rows.")
    max_eval_samples: int | None = _option(None, "Use only the first so many validation rows.")
    cache_dir: str | None = _option(None, "Where downloads are kept.")
    encrypted_eval_samples: int = _option(
        0, "Classify the first so many validation rows on secret shares as well, and report what differs."
    )
    bootstrap_resamples: int = _option(1000, "Draws for the 95 % intervals.")
    results_file: str | None = _option(None, "JSON file that the task's row of results is written to as well.")

    # Taken over from the script's own training arguments.
    output_dir: str = field(init=False, default="")
    seed: int = field(init=False, default=42)
    num_train_epochs: float = field(init=False, default=3.0)
    learning_rate: float = field(init=False, default=5e-5)
    router_learning_rate: float = field(init=False, default=1e-3)

    def adopt(self, training_args):
        """Take over what the script's training arguments say as well."""
        for name in ("output_dir", "seed", "num_train_epochs", "learning_rate"):
            setattr(self, name, getattr(training_args, name))
        if getattr(training_args, "router_learning_rate", None) is not None:
            self.router_learning_rate = training_args.router_learning_rate
        return self

    def fingerprint(self):
        """What a run must have in common with the one it resumes."""
        values = asdict(self)
        for name in _PLACES:
            values.pop(name)
        return values


def command_line(script, argv):
    """The command for cards: files and folders outside of the working directory by their name only."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's, and Accelerate's
    launcher = ["python"] if processes == "1" else ["torchrun", "--nproc_per_node", processes]
    return shlex.join([*launcher, script, *(Path(part).name if Path(part).is_absolute() else part for part in argv)])
