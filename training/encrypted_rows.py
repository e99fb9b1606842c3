# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Validation rows on secret shares beside clear text, by a pool that is trained already: labels, errors and costs.

    python training/encrypted_rows.py --router mrpc-router --task_name mrpc --data_dir data --max_eval_samples 200

Another file of rows, such as adversarial ones, is named by `--validation_file`. The training rows of the same
source, or those of `--train_file`, set the bounds of every layer; with nothing but a `--validation_file` the
built-in samples do. One line of JSON: how many labels are those of the clear model, of all rows and of those whose
clear logits differ by more than 0.05; the largest error of a logit; the metrics of both; the seconds and bytes of a
query; and how many rows were in batches whose values kept their bounds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from transformers import DataCollatorWithPadding

from hf_securerouter.classification import load_checkpoint
from hf_securerouter.recipes.arguments import make_parser
from hf_securerouter.recipes.data import open_data, tokenize
from hf_securerouter.recipes.encrypted_check import SAMPLES, EncryptedArguments, check_pool
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = make_parser(__doc__, EncryptedArguments).parse_args_into_dataclasses(argv)
    model, tokenizer = load_checkpoint(args.router)
    labels = [] if model.config.problem_type == "regression" else list(model.config.id2label.values())
    data = open_data(args, labels)
    rows = tokenize(data.task, data.rows("validation"), tokenizer, model.config.max_length)
    samples = []
    if args.train_file or args.data_dir or not args.validation_file:
        samples = tokenize(data.task, data.rows("train")[:SAMPLES], tokenizer, model.config.max_length)
    print(json.dumps(check_pool(data.task, model, rows, DataCollatorWithPadding(tokenizer), samples)), flush=True)


if __name__ == "__main__":
    run_script(main)
