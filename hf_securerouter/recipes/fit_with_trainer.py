# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Fitting with the Trainer."""

from __future__ import annotations

from transformers import HfArgumentParser, Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.distillation import expert_loss
from hf_securerouter.trainer import SecureRouterTrainer, SecureRouterTrainingArguments


class ExpertTrainer(Trainer):
    """Trains one expert, by a teacher where the rows hold its answers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = expert_loss(model, inputs)
        return (loss, outputs) if return_outputs else loss


def parse_args(argv, kind=RunArguments):
    parser = HfArgumentParser((kind, SecureRouterTrainingArguments), description=__doc__)
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml")):
        read = parser.parse_json_file if argv[0].endswith(".json") else parser.parse_yaml_file
        return read(argv[0])
    return parser.parse_args_into_dataclasses(argv)


def trainer_fit(args, training_args):
    """What a [`RoutedPoolRun`] trains with: a Trainer for each step, with the script's arguments."""

    def fit(run, name, model, rows, epochs, learning_rate):
        set_seed(args.seed)
        folder = run.folder / "steps" / name
        own = {
            field: getattr(training_args, field)
            for field, description in training_args.__dataclass_fields__.items()
            if description.init
        }
        own |= {"output_dir": str(folder), "num_train_epochs": epochs, "learning_rate": learning_rate}
        own |= {"router_learning_rate": None, "eval_strategy": "no", "load_best_model_at_end": False}
        own |= {"push_to_hub": False, "remove_unused_columns": False}  # a teacher's answers are no expert's argument
        kind = ExpertTrainer
        if isinstance(model, SecureRouterForSequenceClassification):
            kind = SecureRouterTrainer
            own |= {"bf16": False, "fp16": False}  # utilities of two experts differ by less than these can tell
        trainer = kind(
            model=model,
            args=SecureRouterTrainingArguments(**own),
            train_dataset=rows,
            processing_class=run.tokenizer,
            data_collator=run.collate,
        )
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)

    return fit
