# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Trains, measures, tunes and reports a routed pool for a GLUE task, with the Trainer.

    python training/run_glue.py --task_name mrpc --model_name_or_path google-bert/bert-base-uncased \
        --expert_layers 2 6 12 --narrow_expert --output_dir mrpc-router

The output folder is a checkpoint with its card; `report.json`, `curve.png` and `row.json` stand beside it. A run that
was stopped goes on when it is started again with the same arguments.
"""

import sys

from transformers import HfArgumentParser, Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.arguments import GlueArguments, command_line
from hf_securerouter.recipes.experts import expert_loss
from hf_securerouter.recipes.routed_pool import GlueRun
from hf_securerouter.trainer import SecureRouterTrainer, SecureRouterTrainingArguments


class ExpertTrainer(Trainer):
    """Trains one expert, by a teacher where the rows hold its answers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = expert_loss(model, inputs)
        return (loss, outputs) if return_outputs else loss


def parse_args(argv, kind=GlueArguments):
    parser = HfArgumentParser((kind, SecureRouterTrainingArguments), description=__doc__)
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml")):
        read = parser.parse_json_file if argv[0].endswith(".json") else parser.parse_yaml_file
        return read(argv[0])
    return parser.parse_args_into_dataclasses(argv)


def trainer_fit(args, training_args):
    """What a [`GlueRun`] trains with: a Trainer for each step, with the script's arguments."""

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


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv)
    args.adopt(training_args)
    run = GlueRun(args, trainer_fit(args, training_args), command_line("training/run_glue.py", argv))
    report = run()
    if training_args.push_to_hub and training_args.should_save:
        name = training_args.hub_model_id or run.folder.name
        run.push(name, training_args.hub_token, training_args.hub_private_repo)
    return report


if __name__ == "__main__":
    main()
