# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What quotas cost in accuracy, by the size of a batch, on labelled validation rows.

    python training/quota_accuracy.py --task_name sst2 --validation_file sst2/validation.jsonl.gz

Under `routing_privacy="quota"` every batch is served in the same shares, whatever its texts are. The shares are those
of `config.quotas`, rounded to the batch. One line of JSON for each size, beside the pool without quotas and each
expert alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from transformers import DataCollatorWithPadding

from hf_securerouter.classification import load_checkpoint
from hf_securerouter.recipes.arguments import make_parser
from hf_securerouter.recipes.data import open_data, tokenize
from hf_securerouter.recipes.prediction import labels_of
from hf_securerouter.recipes.quota_accuracy import QuotaArguments, answers, quota_accuracies, quota_shares
from hf_securerouter.recipes.script import run_script


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = make_parser(__doc__, QuotaArguments).parse_args_into_dataclasses(argv)
    model, tokenizer = load_checkpoint(args.model)
    config = model.config
    data = open_data(args, [config.id2label[index] for index in range(config.num_labels)])
    rows = tokenize(data.task, data.rows("validation"), tokenizer, config.max_length)
    scores, classes = answers(model, rows, DataCollatorWithPadding(tokenizer))
    right = classes == labels_of(rows)[:, None]
    policy = config.expert_costs, config.routing_lambda, quota_shares(model)
    for line in quota_accuracies(scores, right, *policy, args.batch_sizes, args.shuffles, args.seed):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run_script(main)
