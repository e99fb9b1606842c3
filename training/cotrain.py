# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Experts made for encryption: those of a finished run, taught to do with cheaper functions what they did before.

    python training/run_glue.py --task_name mrpc ... --output_dir mrpc-exact
    python training/cotrain.py --exact_dir mrpc-exact --task_name mrpc ... --output_dir mrpc-router

Takes the arguments of `run_glue.py` and does what it does, but for the experts. Each of them takes the steps of
`--variants` one after the other, to a narrower precision, to fewer heads and neurons or to cheaper functions: a copy
learns attention, hidden states and outputs from the exact expert, layer by layer, starting from the last copy, and
the steps end with the first that loses more than `--most_lost` points on the rows which no expert has seen. A copy
computes with the weights that are shared, rounds at random as shares do, and is fined for values beyond its bounds;
at the end heads whose scores come too near to theirs are scaled down. One that still has such values is not taken,
but the next step may bring them down. The last copy that is good enough is taken. `variants.json` lists what was
tried, with scores and measured costs.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from run_glue import parse_args, trainer_fit
from torch import nn
from transformers import set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_securerouter import SecureRouterValueError
from hf_securerouter.fixed_point_layers import FixedPointLinear, range_penalty
from hf_securerouter.losses import layer_loss
from hf_securerouter.metrics import glue_score
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.recipes.arguments import GlueArguments, _option, command_line
from hf_securerouter.recipes.costs import measure_expert
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.experts import EXACT, device, load_expert, predict, save_once, taught
from hf_securerouter.recipes.head_pruning import measure_importance, slim, slim_shape
from hf_securerouter.recipes.routed_pool import GlueRun, once
from hf_securerouter.recipes.score_scaling import temper


CHANGES = {
    "w8a8": {"precision": "w8a8"},
    "slim": {},
    "quadratic": {"hidden_act": "quadratic"},
    "relu": {"hidden_act": "relu"},
    "2quad": {"softmax": "2quad"},
    "2relu": {"softmax": "2relu"},
}
HEADS, NEURONS = 2 / 3, 5 / 6  # that stay in a slim expert: in w8a8, half of the bytes at 12 heads of 32
RANGE_WEIGHT = 10.0  # of the range penalty
OUTLIER = 0.5  # weights beyond it make values beyond their bounds, and an optimizer would take long to bring them down
BATCH = 64
SOME = 16  # batches that tell which heads and neurons matter, and how far scores lie apart


@dataclass
class CotrainArguments(GlueArguments):
    """Those of a run, and where its exact experts are."""

    exact_dir: str | None = _option(None, "The output folder of a finished run of run_glue.py with the same rows.")
    most_lost: float = _option(0.5, "Points that an expert may lose by what makes it cheaper.")
    variants: list[str] = field(
        default_factory=lambda: ["w8a8", "w8a8+slim"],
        metadata={"help": f"What to try, in this order: any of {', '.join(CHANGES)}, joined by +."},
    )


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
        attentions = own.attentions, target.attentions
        if self.expert.config.num_attention_heads != self.exact.config.num_attention_heads:
            attentions = (), ()  # hidden states have to do
        loss = layer_loss(own.hidden_states, target.hidden_states, *attentions, attention_mask)
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
        unknown = sorted({change for name in args.variants for change in name.split("+")} - set(CHANGES))
        if unknown:
            raise SecureRouterValueError(
                f"`variants` should join {', '.join(CHANGES)} by +, got {', '.join(map(repr, unknown))}."
            )
        super().__init__(args, fit, command)

    def final_experts(self, rows, own, held_out):
        """Folders of the experts that are taken; what they compute goes into `functions`."""
        folders, variants = [], []
        for index, length in enumerate(self.lengths):
            seen, unseen = (shortened([rows[row] for row in part], length) for part in (own, held_out))
            exact = self.exact(index)
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
        taken = last = exact
        tried = [self.tried(index, exact, EXACT, unseen)]
        least = tried[0]["score"] - self.args.most_lost / 100
        for name in self.args.variants:
            changes = name.split("+")
            functions = EXACT | {key: value for change in changes for key, value in CHANGES[change].items()}
            candidate = self.folder / "experts" / f"{index}-{name}"
            start = last if "slim" in changes else self.whole(last, exact)
            self.follow(candidate, start, exact, functions, "slim" in changes, seen)
            tried.append(self.tried(index, candidate, functions, unseen))
            if tried[-1]["score"] < least:
                break
            last = candidate
            if tried[-1].get("widest", 0) <= 1:
                taken, self.functions[candidate] = candidate, functions
        return taken, tried

    def whole(self, last, exact):
        """The last copy, or the exact expert if that copy is slim."""
        return last if _shape(load_expert(last)) == _shape(load_expert(exact)) else exact

    def report(self, models, folders, costs, tuning):
        variants = json.loads((self.folder / "variants.json").read_text())
        return super().report(models, folders, costs, tuning) | {"variants": variants}

    def largest(self, folders):
        return load_expert(self.exact(len(self.members) - 1))

    def largest_answers(self, logits, rows):
        return predict(self.largest(None).to(device()), rows, self.collate)[0]

    def describe(self, model, index):
        heads, neurons = shape = _shape(model.experts[index])
        is_slim = shape != _shape(load_expert(self.exact(index)))
        return super().describe(model, index) + (f", {heads} heads, {neurons} neurons" if is_slim else "")

    def exact(self, index):
        """The folder of an exact expert."""
        return Path(self.args.exact_dir, "experts", "final", str(index))

    def follow(self, folder, start, exact, functions, is_slim, rows):
        """Trains one copy into `folder`, if it does not stand there already."""
        args, teacher = self.args, load_expert(exact).to(device())
        expert = load_expert(start)
        if is_slim and _shape(expert) == _shape(teacher):
            expert = self.slimmed(expert, teacher, rows)
        use_functions(expert, **functions)

        def train():
            data = taught(rows, teacher, self.collate, self.task, args, set(self.tokenizer.all_special_ids))
            for layer in expert.modules():
                if isinstance(layer, FixedPointLinear) and layer.format.centred:
                    layer.weight.data.clamp_(-OUTLIER, OUTLIER)
            follower = Follower(expert, teacher.cpu()).train()
            self.train(folder.name, follower, data, args.distillation_epochs, args.learning_rate)
            if functions["precision"] != "full" and functions["softmax"] == "exact":
                temper(expert, self.some(rows, expert.device))

        save_once(folder, expert, self.tokenizer, train)

    def slimmed(self, expert, exact, rows):
        """A copy of an expert without the heads and neurons that matter least to the exact one."""
        exact.set_attn_implementation("eager")  # the others give no attention
        importance = measure_importance(exact, self.some(rows, exact.device))
        set_seed(self.args.seed)
        return slim(expert, *slim_shape(exact.config, HEADS, NEURONS), importance)

    def some(self, rows, where):
        """The first batches of the rows."""
        rows = rows[: SOME * BATCH]
        return [self.collate(rows[start : start + BATCH]).to(where) for start in range(0, len(rows), BATCH)]

    def tried(self, index, folder, functions, unseen):
        """What `variants.json` says of one copy: its score on rows that no expert has seen and, if costs are measured,
        what a query takes it; of a narrow precision, how much of their bounds its values need: no more than 1, or its
        encrypted answers would be garbage."""
        expert = load_expert(folder, functions)
        heads, neurons = _shape(expert)
        found = {"expert": index, "heads": heads, "neurons": neurons, **functions}
        found["score"] = self.score(folder, functions, unseen)
        if functions["precision"] != "full":
            parts = (self.collate(unseen[start : start + BATCH]) for start in range(0, len(unseen), BATCH))
            found["widest"] = widest(expert.to(device()), parts)
        if self.args.expert_costs:
            return found
        return found | measure_expert(self.args, expert.cpu(), self.lengths[index])

    def score(self, folder, functions, rows):
        """The score of one expert."""
        (logits,) = predict(load_expert(folder, functions).to(device()), rows, self.collate)
        predicted = logits[:, 0] if self.task.regression else logits.argmax(dim=1)
        return glue_score(self.task.name)(predicted.numpy(), torch.tensor([row["labels"] for row in rows]).numpy())


@torch.no_grad()
def widest(expert, batches):
    """The largest value of an expert over its bound, on some batches; above 1 its encrypted answers are garbage."""
    found = 0.0
    for batch in batches:
        inputs = {name: value.to(expert.device) for name, value in batch.items() if name != "labels"}
        with range_penalty(inputs["attention_mask"]) as penalty:
            expert(**inputs)
        found = max(found, penalty.widest)
    return found


def _shape(expert):
    """Heads and neurons of a layer."""
    return slim_shape(expert.config, 1, 1)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args, training_args = parse_args(argv, CotrainArguments)
    args.adopt(training_args)
    return CotrainedRun(args, trainer_fit(args, training_args), command_line("training/cotrain.py", argv))()


if __name__ == "__main__":
    main()
