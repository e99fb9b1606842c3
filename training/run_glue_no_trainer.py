# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
The same as `run_glue.py`, with a loop of its own over Accelerate.

    accelerate launch training/run_glue_no_trainer.py --task_name mrpc \
        --model_name_or_path google-bert/bert-base-uncased --expert_layers 2 6 12 --narrow_expert \
        --mixed_precision bf16 --gradient_accumulation_steps 2 --checkpointing_steps 200 --output_dir mrpc-router

A run that was stopped goes on when it is started again with the same arguments.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler, set_seed

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.recipes.arguments import RunArguments, command_line, make_parser
from hf_securerouter.recipes.distillation import expert_loss
from hf_securerouter.recipes.fitting import Row, Workspace
from hf_securerouter.recipes.half_precision import announce_bfloat16
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.script import run_script
from hf_securerouter.trainer import refuse_other_update_size


@dataclass
class LoopArguments:
    """What the loop needs; names as in transformers' scripts without the Trainer."""

    output_dir: str = field(metadata={"help": "Where the model, its card and the report go."})
    seed: int = field(default=42, metadata={"help": "Seed of everything that is drawn."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a batch on each device."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of one update."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the experts."})
    router_learning_rate: float | None = field(default=None, metadata={"help": "The router's; default: 1e-3."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW, for matrices."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm that gradients are clipped to."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs of the largest expert."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Updates at most, of every step of the run."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Schedule of the learning rate."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Share of the updates that warm up."})
    mixed_precision: str | None = field(default=None, metadata={"help": '"no", "fp16" or "bf16".'})
    checkpointing_steps: int | None = field(default=None, metadata={"help": "Updates between checkpoints."})
    logging_steps: int = field(default=50, metadata={"help": "Updates between two lines of progress."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU."})

    bf16 = property(lambda self: self.mixed_precision == "bf16")


class Loop:
    """Trains one model after the other; a step that was stopped goes on from its last checkpoint."""

    def __init__(self, options: LoopArguments) -> None:
        size, steps = options.per_device_train_batch_size, options.gradient_accumulation_steps
        if size < 1 or steps < 1:
            names = "`per_device_train_batch_size` and `gradient_accumulation_steps`"
            raise SecureRouterValueError(f"{names} should be at least 1, got {size} and {steps}.")
        self.options = options
        self.accelerator = Accelerator(
            cpu=options.use_cpu, mixed_precision=options.mixed_precision, gradient_accumulation_steps=steps
        )
        self.update_size = size * steps * self.accelerator.num_processes
        announce_bfloat16(options.bf16, self.accelerator.device)

    def __call__(
        self, run: Workspace, name: str, model: nn.Module, rows: Sequence[Row], epochs: float, learning_rate: float
    ) -> None:
        options, accelerator = self.options, self.accelerator
        set_seed(options.seed)
        is_pool = isinstance(model, SecureRouterForSequenceClassification)
        # A generator of its own: a resumed run sees rows in the same order as a run that was not stopped.
        generator = torch.Generator().manual_seed(options.seed)
        loader = DataLoader(
            rows, options.per_device_train_batch_size, shuffle=True, collate_fn=run.collate, generator=generator
        )
        optimizer = torch.optim.AdamW(_groups(model, options.weight_decay), lr=learning_rate)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        if is_pool:  # half precision rounds away the difference of two utilities
            _restore_forward(accelerator.unwrap_model(model))
        per_epoch = math.ceil(len(loader) / options.gradient_accumulation_steps)
        updates = max(1, math.ceil(epochs * per_epoch))
        if options.max_train_steps is not None:
            updates = min(updates, options.max_train_steps)
        # A prepared schedule takes one step per process and update.
        processes = accelerator.num_processes
        schedule = accelerator.prepare(
            get_scheduler(
                options.lr_scheduler_type,
                optimizer,
                math.ceil(options.warmup_ratio * updates) * processes,
                updates * processes,
            )
        )
        done = self.resume(run.folder / "steps" / name)
        config = accelerator.unwrap_model(model).config
        progress = tqdm(total=updates, initial=done, desc=name, disable=not accelerator.is_local_main_process)
        for epoch in range(done // per_epoch, math.ceil(updates / per_epoch)):
            model.train()
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            skipped = done - epoch * per_epoch
            generator.manual_seed(options.seed + epoch)
            batches = accelerator.skip_first_batches(loader, skipped * options.gradient_accumulation_steps)
            for batch in batches if skipped else loader:
                with accelerator.accumulate(model):
                    if is_pool:
                        accelerator.unwrap_model(model).annealed_temperature = config.temperature_at(done, updates)
                        output = model(**batch)
                        loss = output.loss
                    else:
                        loss, output = expert_loss(model, batch)[0], {}
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                if not accelerator.sync_gradients:
                    continue
                done += 1
                progress.update()
                if done % options.logging_steps == 0 or done == updates:
                    accelerator.print(f"{name}: update {done} of {updates}, {_losses(loss, output)}")
                if options.checkpointing_steps and done % options.checkpointing_steps == 0 and done < updates:
                    self.checkpoint(run.folder / "steps" / name, done)
                if done >= updates:
                    break
        progress.close()
        _restore_forward(accelerator.unwrap_model(model))
        accelerator.free_memory()

    def checkpoint(self, folder: Path, done: int) -> None:
        """Saves the state after `done` updates, and removes the one before."""
        staging = folder / f".{done}"
        self.accelerator.save_state(str(staging), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (staging / "update_size").write_text(str(self.update_size), encoding="utf-8")
            staging.rename(folder / str(done))
            for path in folder.iterdir():
                if path.name != str(done):
                    shutil.rmtree(path)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> int:
        """Loads the last checkpoint of a step; returns the updates done."""
        found = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
        if found:
            saved = folder / str(max(found)) / "update_size"
            if saved.exists():  # as with a Trainer, checkpoints from before there was this file go on unchecked
                refuse_other_update_size(int(saved.read_text(encoding="utf-8")), self.update_size)
            self.accelerator.load_state(str(saved.parent))
        return max(found, default=0)


def _restore_forward(model: nn.Module) -> None:
    """Removes the autocast that `prepare` put around the model's forward."""
    for name in ("forward", "_original_forward"):
        model.__dict__.pop(name, None)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]


def _losses(loss: torch.Tensor, output: Mapping[str, torch.Tensor]) -> str:
    parts = {"loss": loss} | {name: output[name] for name in ("task_loss", "balance_loss", "cost_loss") if output}
    return ", ".join(f"{name} {value.item():.4f}" for name, value in parts.items())


def parse_args(argv: Sequence[str]) -> tuple[RunArguments, LoopArguments]:
    args, options = make_parser(__doc__, RunArguments, LoopArguments).parse_args_into_dataclasses(list(argv))
    return args.adopt(options), options


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    argv = sys.argv[1:] if argv is None else argv
    args, options = parse_args(argv)
    return RoutedPoolRun(args, Loop(options), command_line("training/run_glue_no_trainer.py", argv))()


if __name__ == "__main__":
    run_script(main)
