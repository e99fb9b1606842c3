# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Experts made for encryption: those of a finished run, taught to do with cheaper functions what they did before.

    python training/run_glue.py --task_name mrpc ... --output_dir mrpc-exact
    python training/cotrain.py --exact_dir mrpc-exact --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py` and does what it does, but for the experts. Each of them goes step by step from
exact to cheaper functions: a copy learns attention, hidden states and outputs from the exact expert, layer by layer,
starting from the step before, and the steps end with the first that loses more than `--most_lost` points on the rows
which no expert has seen. `variants.json` lists what was tried.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from glue_arguments import GlueArguments, _option, command_line
from glue_data import shortened
from glue_experts import EXACT, device, load_expert, predict, save_once, taught
from glue_run import GlueRun, once
from run_glue import parse_args, trainer_fit
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_securerouter import SecureRouterValueError
from hf_securerouter.losses import layer_loss
from hf_securerouter.metrics import glue_score


STEPS = (
    {"hidden_act": "quadratic", "softmax": "exact", "precision": "full"},
    {"hidden_act": "quadratic", "softmax": "2quad", "precision": "full"},
)


@dataclass
class CotrainArguments(GlueArguments):
    """Those of a run, and where its exact experts are."""

    exact_dir: str | None = _option(None, "The output folder of a finished run of run_glue.py with the same rows.")
    most_lost: float = _option(0.5, "Points that an expert may lose by other functions.")


class Follower(nn.Module):
    """An expert that learns from an exact one of its shape; `loss` is what its layers differ by.

    Inputs: token ids, mask and token types of shape (B, T). Output: `loss`, a scalar, and `logits` of shape (B, C).
    """

    def __init__(self, expert, exact):
        super().__init__()
        exact.set_attn_implementation("eager")  # the others give no attention
        if expert.expert_mpc["softmax"] == "exact":
            expert.set_attn_implementation("eager")
        self.expert, self.exact = expert, exact.requires_grad_(False)
        self.config = expert.config

    def train(self, mode=True):
        super().train(mode)
        self.exact.eval()
        return self

    def forward(self, attention_mask, **inputs):
        inputs |= {"attention_mask": attention_mask, "output_hidden_states": True, "output_attentions": True}
        own = self.expert(**inputs)
        with torch.no_grad():
            target = self.exact(**inputs)
        loss = layer_loss(own.hidden_states, target.hidden_states, own.attentions, target.attentions, attention_mask)
        return SequenceClassifierOutput(loss=loss, logits=own.logits)


class CotrainedRun(GlueRun):
    """A run whose experts come from another one."""

    def __init__(self, args, fit, command):
        if args.exact_dir is None or args.cross_fit_folds:
            raise SecureRouterValueError(
                "`exact_dir` should name the output folder of a finished run that held rows out, and "
                "`cross_fit_folds` be 0."
            )
        super().__init__(args, fit, command)

    def final_experts(self, rows, own, held_out):
        """Folders of the experts that are taken; what they compute goes into `functions`."""
        folders, variants = [], []
        for index, length in enumerate(self.lengths):
            seen, unseen = (shortened([rows[row] for row in part], length) for part in (own, held_out))
            exact = Path(self.args.exact_dir, "experts", "final", str(index))
            if not exact.exists():
                raise SecureRouterValueError(
                    f"`exact_dir` {self.args.exact_dir!r} holds no expert {index}: let its run end first."
                )
            score = self.score(exact, EXACT, unseen)
            variants.append({"expert": index, **EXACT, "score": score})
            folder, least = exact, score - self.args.most_lost / 100
            for step in STEPS:
                candidate = self.folder / "experts" / f"{index}-{step['hidden_act']}-{step['softmax']}"
                self.follow(candidate, folder, exact, step, seen)
                score = self.score(candidate, step, unseen)
                variants.append({"expert": index, **step, "score": score})
                if score < least:
                    break
                folder, self.functions[candidate] = candidate, step
            folders.append(folder)
        once(self.folder / "variants.json", lambda: variants)
        return folders

    def largest(self, folders):
        return load_expert(Path(self.args.exact_dir, "experts", "final", str(len(self.members) - 1)))

    def largest_answers(self, logits, rows):
        return predict(self.largest(None).to(device()), rows, self.collate)[0]

    def follow(self, folder, start, exact, functions, rows):
        """Trains one copy into `folder`, if it does not stand there already."""
        args, expert, teacher = self.args, load_expert(start, functions), load_expert(exact).to(device())

        def train():
            data = taught(rows, teacher, self.collate, self.task, args, set(self.tokenizer.all_special_ids))
            follower = Follower(expert, teacher.cpu()).train()
            self.train(folder.name, follower, data, args.distillation_epochs, args.learning_rate)

        save_once(folder, expert, self.tokenizer, train)

    def score(self, folder, functions, rows):
        """The score of one expert."""
        (logits,) = predict(load_expert(folder, functions).to(device()), rows, self.collate)
        predicted = logits[:, 0] if self.task.regression else logits.argmax(dim=1)
        return glue_score(self.task.name)(predicted.numpy(), torch.tensor([row["labels"] for row in rows]).numpy())


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv, CotrainArguments)
    args.adopt(training_args)
    return CotrainedRun(args, trainer_fit(args, training_args), command_line("training/cotrain.py", argv))()


if __name__ == "__main__":
    main()
