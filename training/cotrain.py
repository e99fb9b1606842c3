# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Experts made for encryption: those of a finished run, taught to do with cheaper functions what they did before.

    python training/run_glue.py --task_name mrpc ... --output_dir mrpc-exact
    python training/cotrain.py --exact_dir mrpc-exact --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py` and does what it does, but for the experts. Each of them goes to a narrower
precision, and from there to cheaper functions: a copy learns attention, hidden states and outputs from the exact
expert, layer by layer, starting from the step before, and the steps end with the first that loses more than
`--most_lost` points on the rows which no expert has seen. A copy computes with the weights that are shared, rounds at
random as shares do, and is fined for values beyond its bounds; one that still has such values is not taken. The last
copy that is good enough is. `variants.json` lists what was tried, with scores and measured costs.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from glue_arguments import GlueArguments, _option, command_line
from glue_costs import measure_expert
from glue_data import shortened
from glue_experts import EXACT, device, load_expert, predict, save_once, taught
from glue_run import GlueRun, once
from run_glue import parse_args, trainer_fit
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_securerouter import SecureRouterValueError
from hf_securerouter.fixed_point_layers import FixedPointLinear, range_penalty
from hf_securerouter.losses import layer_loss
from hf_securerouter.metrics import glue_score


STEPS = (
    {"hidden_act": "exact", "softmax": "exact", "precision": "w8a8"},
    {"hidden_act": "quadratic", "softmax": "2quad", "precision": "w8a8"},
)
RANGE_WEIGHT = 3.0  # of the range penalty
OUTLIER = 0.5  # weights beyond it make values beyond their bounds, and an optimizer would take long to bring them down
BATCH = 64


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
        if expert.expert_mpc["softmax"] == "exact" and expert.expert_mpc["precision"] == "full":
            expert.set_attn_implementation("eager")
        expert.get_input_embeddings().requires_grad_(False)  # shares begin behind them
        for module in expert.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # rounding is noise enough
        self.expert, self.exact = expert, exact.requires_grad_(False)
        self.config = expert.config

    def train(self, mode=True):
        super().train(mode)
        self.exact.eval()
        return self

    def forward(self, attention_mask, **inputs):
        inputs |= {"attention_mask": attention_mask, "output_hidden_states": True, "output_attentions": True}
        with range_penalty(attention_mask) as penalty:
            own = self.expert(**inputs)
        with torch.no_grad():
            target = self.exact(**inputs)
        loss = layer_loss(own.hidden_states, target.hidden_states, own.attentions, target.attentions, attention_mask)
        if self.expert.expert_mpc["precision"] != "full":
            loss = loss + RANGE_WEIGHT * penalty()
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
            taken, tried = self.search(index, exact, seen, unseen)
            folders.append(taken)
            variants += tried
        once(self.folder / "variants.json", lambda: variants)
        return folders

    def search(self, index, exact, seen, unseen):
        """The folder of the copy of one expert that is taken, the exact one if none is good, and what was tried."""
        taken, tried = exact, [self.tried(index, exact, EXACT, unseen)]
        least = tried[0]["score"] - self.args.most_lost / 100
        for step in STEPS:
            candidate = self.folder / "experts" / "-".join([str(index), *step.values()])
            self.follow(candidate, taken, exact, step, seen)
            tried.append(self.tried(index, candidate, step, unseen))
            if tried[-1]["score"] < least or tried[-1].get("widest", 0) > 1:
                break
            taken, self.functions[candidate] = candidate, step
        return taken, tried

    def report(self, models, folders, costs, tuning):
        variants = json.loads((self.folder / "variants.json").read_text())
        return super().report(models, folders, costs, tuning) | {"variants": variants}

    def largest(self, folders):
        return load_expert(Path(self.args.exact_dir, "experts", "final", str(len(self.members) - 1)))

    def largest_answers(self, logits, rows):
        return predict(self.largest(None).to(device()), rows, self.collate)[0]

    def follow(self, folder, start, exact, functions, rows):
        """Trains one copy into `folder`, if it does not stand there already."""
        args, expert, teacher = self.args, load_expert(start, functions), load_expert(exact).to(device())

        def train():
            data = taught(rows, teacher, self.collate, self.task, args, set(self.tokenizer.all_special_ids))
            for layer in expert.modules():
                if isinstance(layer, FixedPointLinear) and layer.format.centred:
                    layer.weight.data.clamp_(-OUTLIER, OUTLIER)
            follower = Follower(expert, teacher.cpu()).train()
            self.train(folder.name, follower, data, args.distillation_epochs, args.learning_rate)

        save_once(folder, expert, self.tokenizer, train)

    def tried(self, index, folder, functions, unseen):
        """What `variants.json` says of one copy: its score on rows that no expert has seen and, if costs are measured,
        what a query takes it; of a narrow precision, how much of their bounds its values need: no more than 1, or its
        encrypted answers would be garbage."""
        found = {"expert": index, **functions, "score": self.score(folder, functions, unseen)}
        if functions["precision"] != "full":
            found["widest"] = self.widest(load_expert(folder, functions), unseen)
        if self.args.expert_costs:
            return found
        return found | measure_expert(self.args, load_expert(folder, functions), self.lengths[index])

    @torch.no_grad()
    def widest(self, expert, rows):
        """The largest value of an expert over its bound, on some rows."""
        expert, found = expert.to(device()), 0.0
        for start in range(0, len(rows), BATCH):
            batch = self.collate(rows[start : start + BATCH]).to(device())
            with range_penalty(batch["attention_mask"]) as penalty:
                expert(**{name: value for name, value in batch.items() if name != "labels"})
            found = max(found, penalty.widest)
        return found

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
