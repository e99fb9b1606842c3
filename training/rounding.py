# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What truncation on shares changes in the logits of experts of reduced precision, by the place of the truncation.

    python training/rounding.py --router mrpc-cotrained --task_name mrpc --data_dir data

For each expert, and for each kind of layer with all others left exact, one line of JSON: the root mean square and the
largest difference of a logit to the clear one, over the first rows of the validation split, each rounded several
times.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from transformers import DataCollatorWithPadding

from hf_securerouter.classification import load_checkpoint
from hf_securerouter.recipes.arguments import make_parser
from hf_securerouter.recipes.data import open_data, tokenize
from hf_securerouter.recipes.rounding import RoundingArguments, errors_by_place
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = make_parser(__doc__, RoundingArguments).parse_args_into_dataclasses(argv)
    torch.manual_seed(args.seed)
    model, tokenizer = load_checkpoint(args.router)
    labels = [] if model.config.problem_type == "regression" else list(model.config.id2label.values())
    data = open_data(args, labels)
    rows = tokenize(data.task, data.rows("validation"), tokenizer, model.config.max_length)
    for line in errors_by_place(model, rows, DataCollatorWithPadding(tokenizer), args.repeats):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run_script(main)
