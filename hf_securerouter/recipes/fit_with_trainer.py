# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Fitting with the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.arguments import RunArguments, make_parser
from hf_securerouter.recipes.artifacts import Countdown, announce
from hf_securerouter.recipes.distillation import expert_loss
from hf_securerouter.recipes.fitting import Fit, Row, Workspace
from hf_securerouter.recipes.half_precision import announce_bfloat16
from hf_securerouter.trainer import SecureRouterTrainer, SecureRouterTrainingArguments, UpdateSizeCallback


A = TypeVar("A", bound=RunArguments)

_NO_EFFECT = {
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "class_weights": None,
    "freeze": None,
    "label_smoothing_factor": 0.0,
}


class ExpertTrainer(Trainer):
    """[`~transformers.Trainer`] for one expert, which learns from a teacher where the rows hold the teacher's answers.

    Args:
        kwargs: Everything that the Trainer takes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        self.add_callback(UpdateSizeCallback)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        loss, outputs = expert_loss(model, inputs)
        return (loss, outputs) if return_outputs else loss


class OneLine(TrainerCallback):
    """In the place of a bar and of a line for each log: how far a long step is, and how long it still takes."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._countdown = Countdown(state.max_steps, "steps", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._countdown(state.global_step)


@refuses_unknown
def parse_args(argv: Sequence[str], kind: type[A], doc: str | None) -> tuple[A, SecureRouterTrainingArguments]:
    """
    The arguments of a script and those of its Trainer.

    Args:
        argv (sequence of `str`): Options, or one `.json` or `.yaml` file that holds them.
        kind (`type`): [`RunArguments`] or a subclass of it.
        doc (`str`): The docstring of the script, for `--help`.

    Raises:
        `SecureRouterValueError`: An argument of the Trainer has no effect on a run.
    """
    parser = make_parser(doc, kind, SecureRouterTrainingArguments)
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml")):
        read = parser.parse_json_file if argv[0].endswith(".json") else parser.parse_yaml_file
        args, training_args = read(argv[0])
    else:
        args, training_args = parser.parse_args_into_dataclasses(list(argv))
    given = [name for name, default in _NO_EFFECT.items() if getattr(training_args, name) not in (None, default)]
    if given:
        raise SecureRouterValueError(
            f"`--{given[0]}` has no effect on a run, which trains its experts and its router in steps of their own: "
            "leave it out, or train in Python with `SecureRouterTrainer`."
        )
    return args.adopt(training_args), training_args


@refuses_unknown
def trainer_fit(training_args: SecureRouterTrainingArguments) -> Fit:
    """
    A [`~hf_securerouter.recipes.fitting.Fit`] that makes a Trainer for each step. A step that was stopped goes on from
    its last checkpoint.

    Args:
        training_args ([`SecureRouterTrainingArguments`]): Of the script; each step has its own folder, epochs and
            learning rate.
    """
    announce_bfloat16(training_args.bf16, training_args.device)

    def fit(
        run: Workspace, name: str, model: nn.Module, rows: Sequence[Row], epochs: float, learning_rate: float
    ) -> None:
        set_seed(training_args.seed)
        folder = run.folder / "steps" / name
        own: dict[str, Any] = {
            field: getattr(training_args, field)
            for field, description in training_args.__dataclass_fields__.items()
            if description.init
        }
        own |= {"output_dir": str(folder), "num_train_epochs": epochs, "learning_rate": learning_rate}
        own |= {"router_learning_rate": None, "eval_strategy": "no", "load_best_model_at_end": False}
        own |= {"disable_tqdm": True}
        own |= {
            "push_to_hub": False,
            "hub_token": None,  # a checkpoint holds the arguments
            "remove_unused_columns": False,
        }  # no model takes `teacher_logits`, which the loss needs
        kind: type[Trainer] = ExpertTrainer
        if not isinstance(model, SecureRouterForSequenceClassification):
            announce(f"Training {name.replace('-', ' ')} on {len(rows)} rows, {epochs:g} epochs ...")
        else:
            kind = SecureRouterTrainer
            own |= {"bf16": False, "fp16": False}  # half precision rounds away the difference of two utilities
        trainer = kind(
            model=model,
            args=SecureRouterTrainingArguments(**own),
            train_dataset=rows,
            processing_class=run.tokenizer,
            data_collator=run.collate,
            callbacks=[OneLine()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))

    return fit


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint of a step, None without one. The Trainer's state is written last: a run that was
    killed before has left a checkpoint without it."""
    whole = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None
