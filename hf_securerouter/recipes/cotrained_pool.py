# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A run whose experts are narrow copies of another run's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import set_seed

from hf_securerouter import SecureRouterValueError
from hf_securerouter.fixed_point_layers import FixedPointLinear
from hf_securerouter.metrics import glue_score
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.range_penalty import range_penalty
from hf_securerouter.recipes.arguments import RunArguments, _option
from hf_securerouter.recipes.artifacts import once, save_once
from hf_securerouter.recipes.costs import measure_expert
from hf_securerouter.recipes.data import shortened
from hf_securerouter.recipes.distillation import Follower, distillation_rows
from hf_securerouter.recipes.experts import EXACT, load_expert
from hf_securerouter.recipes.head_pruning import measure_importance, prune, pruned_shape
from hf_securerouter.recipes.prediction import device, predict
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.score_scaling import scale_down_queries


CHANGES = {
    "w8a8": {"precision": "w8a8"},
    "slim": {},
    "quadratic": {"hidden_act": "quadratic"},
    "relu": {"hidden_act": "relu"},
    "2quad": {"softmax": "2quad"},
    "2relu": {"softmax": "2relu"},
}


HEADS, NEURONS = 2 / 3, 5 / 6  # that stay in a slim expert: in w8a8, half of the bytes at 12 heads of 32


OUTLIER = 0.5  # weights beyond it make values beyond their bounds, and an optimizer would take long to bring them down


BATCH = 64


SOME = 16  # batches that tell which heads and neurons matter, and how far scores lie apart


@dataclass
class CotrainArguments(RunArguments):
    """Those of a run, and where its exact experts are."""

    exact_dir: str | None = _option(None, "The output folder of a finished run of run_glue.py with the same rows.")
    most_lost: float = _option(0.5, "Points that an expert may lose by what makes it cheaper.")
    variants: list[str] = field(
        default_factory=lambda: ["w8a8", "w8a8+slim"],
        metadata={"help": f"What to try, in this order: any of {', '.join(CHANGES)}, joined by +."},
    )


class CotrainedRun(RoutedPoolRun):
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
        is_pruned = shape != _shape(load_expert(self.exact(index)))
        return super().describe(model, index) + (f", {heads} heads, {neurons} neurons" if is_pruned else "")

    def exact(self, index):
        """The folder of an exact expert."""
        return Path(self.args.exact_dir, "experts", "final", str(index))

    def follow(self, folder, start, exact, functions, is_pruned, rows):
        """Trains one copy into `folder`, if it does not stand there already."""
        args, teacher = self.args, load_expert(exact).to(device())
        expert = load_expert(start)
        if is_pruned and _shape(expert) == _shape(teacher):
            expert = self.pruned(expert, teacher, rows)
        use_functions(expert, **functions)

        def train():
            data = distillation_rows(rows, teacher, self.collate, self.task, args, set(self.tokenizer.all_special_ids))
            for layer in expert.modules():
                if isinstance(layer, FixedPointLinear) and layer.format.centred:
                    layer.weight.data.clamp_(-OUTLIER, OUTLIER)
            follower = Follower(expert, teacher.cpu()).train()
            self.train(folder.name, follower, data, args.distillation_epochs, args.learning_rate)
            if functions["precision"] != "full" and functions["softmax"] == "exact":
                scale_down_queries(expert, self.some(rows, expert.device))

        save_once(folder, expert, self.tokenizer, train)

    def pruned(self, expert, exact, rows):
        """A copy of an expert without the heads and neurons that matter least to the exact one."""
        exact.set_attn_implementation("eager")  # the others give no attention
        importance = measure_importance(exact, self.some(rows, exact.device))
        set_seed(self.args.seed)
        return prune(expert, *pruned_shape(exact.config, HEADS, NEURONS), importance)

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
    return pruned_shape(expert.config, 1, 1)
