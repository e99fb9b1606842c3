# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What truncation on shares changes in the logits of `w8a8` experts, by the place where it is done.

    python training/rounding.py --router mrpc-cotrained --task_name mrpc --data_dir data

Truncation rounds up or down at random, in the mean rightly, so that encrypted logits lie around those of the clear
model. For each expert, and for each kind of layer with all others left as they are, one line of JSON: the root mean
square and the largest difference of a logit to the clear one, over the first rows of the validation split, each
rounded several times.
"""

import argparse
import json

import torch
from torch import nn
from transformers import AutoTokenizer, DataCollatorWithPadding

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.families import head_of, layers_of
from hf_securerouter.recipes.data import load_split, shortened, tokenize
from hf_securerouter.recipes.tasks import TASKS


PARTS = "query", "key", "value", "attention output", "norm", "intermediate", "output", "norm"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Errors of logits by the place of truncation.")
    parser.add_argument("--router", required=True, help="folder of a pool with experts in w8a8")
    parser.add_argument("--task_name", required=True, choices=sorted(TASKS))
    parser.add_argument("--data_dir", help="local copies of the tasks, as for run_glue.py")
    parser.add_argument("--validation_file", help="rows of the user's own, as for run_glue.py")
    parser.add_argument("--max_eval_samples", type=int, default=64, help="rows of the validation split")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is rounded")
    parser.add_argument("--seed", type=int, default=42)
    parser.set_defaults(cache_dir=None)
    return parser.parse_args(argv)


def places(expert):
    """All modules that truncate in training, by their kind."""
    found = {"head": [*head_of(expert)], "softmax": []}
    for layer in layers_of(expert):
        for kind, module in zip(PARTS, layer, strict=True):
            found.setdefault(kind, []).append(module)
        # The attention function truncates where the module that owns the queries is in training.
        found["softmax"] += [owner for owner in expert.modules() if any(layer[0] is own for own in owner.children())]
    return found


@torch.no_grad()
def errors(expert, batch, modules, repeats):
    """Logits minus the clear ones, (repeats, N, C), with truncation in these modules and in no others."""
    clear = expert.eval()(**batch).logits
    for module in modules:
        module.training = True
    found = torch.stack([expert(**batch).logits for _ in range(repeats)]) - clear
    expert.eval()
    return found


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    model = SecureRouterForSequenceClassification.from_pretrained(args.router)
    tokenizer = AutoTokenizer.from_pretrained(args.router)
    rows = tokenize(TASKS[args.task_name], load_split(args, "validation"), tokenizer, model.config.max_length)
    for index, expert in enumerate(model.experts):
        if model.config.expert_mpc[index]["precision"] == "full":
            continue
        for module in expert.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        batch = DataCollatorWithPadding(tokenizer)(shortened(rows, model.config.length_of(index)))
        del batch["labels"]
        kinds = places(expert)
        kinds = {"all": [module for modules in kinds.values() for module in modules]} | kinds
        for kind, modules in kinds.items():
            found = errors(expert, batch, modules, args.repeats)
            told = {"rms": found.square().mean().sqrt(), "largest": found.abs().max()}
            told = {name: float(f"{value:.2g}") for name, value in told.items()}
            print(json.dumps({"expert": index, "place": kind} | told), flush=True)


if __name__ == "__main__":
    main()
