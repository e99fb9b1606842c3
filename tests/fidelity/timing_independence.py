# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Do the seconds of a query tell anything about its text?

    python tests/fidelity/timing_independence.py --runs 200 --output timing.json

Two batches that differ as much as texts can (one word, and a full row of tokens) are sent through one session in a
random order, and the online seconds of both are compared by a permutation test of the difference of their medians.
Where the servers may know the expert (`revealed`), a plain classifier is measured instead of the pool: the pool's
seconds depend on the expert, and on nothing else.

The exit status is 1 when the difference is significant at the level `--level`. A machine with other work on it makes
the test weaker, not wrong.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
from scipy.stats import permutation_test
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_securerouter.classification import DEMO_CHECKPOINT
from hf_securerouter.mpc.convert import to_mpc


SHORT = "Bad."
LONG = "It never quite decides what it wants to be, and yet there is not one scene in it that I would lose, " * 3


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Compare the seconds of two batches that differ in their texts.")
    parser.add_argument("--model", default=str(DEMO_CHECKPOINT), help="folder of a checkpoint")
    parser.add_argument("--routing-privacy", default="revealed")
    parser.add_argument("--runs", type=int, default=200, help="queries of each batch")
    parser.add_argument("--batch-size", type=int, default=6)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--level", type=float, default=0.01, help="of significance")
    parser.add_argument("--output", type=Path, help="file of the seconds and of the result")
    return parser.parse_args(argv)


def measure(secure, batches, runs, batch_size):
    """The online seconds of every batch, (len(batches), runs), in a random order of queries."""
    order = [index for index in range(len(batches)) for _ in range(runs)]
    random.SystemRandom().shuffle(order)
    seconds = [[] for _ in batches]
    with secure.local_session(batch_size=batch_size) as session:
        for _ in range(5):
            session(batches[0])
        for done, index in enumerate(order):
            seconds[index].append(session(batches[index]).cost.online_seconds)
            if done % 50 == 0:
                print(f"{done} of {len(order)} queries", file=sys.stderr, flush=True)
    return np.array(seconds)


def difference(first, second, axis):
    return np.median(first, axis=axis) - np.median(second, axis=axis)


def main(argv=None):
    args = parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
    pool = args.routing_privacy != "revealed"
    member = model if pool or not hasattr(model, "experts") else model.experts[-1]
    options = {"routing_privacy": args.routing_privacy} if pool else {}
    secure = to_mpc(member, tokenizer, max_length=args.max_length, **options)
    batches = [[text] * args.batch_size for text in (SHORT, LONG)]
    first, second = measure(secure, batches, args.runs, args.batch_size)
    test = permutation_test((first, second), difference, vectorized=True, n_resamples=9999, axis=-1)
    results = {
        "routing_privacy": args.routing_privacy,
        "runs": args.runs,
        "batch_size": args.batch_size,
        "median_seconds": [float(np.median(first)), float(np.median(second))],
        "relative_difference": float(test.statistic / np.median(first)),
        "p_value": float(test.pvalue),
    }
    print(json.dumps(results))
    if args.output:
        temporary = args.output.with_name(f"{args.output.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(results | {"seconds": [first.tolist(), second.tolist()]}))
        temporary.replace(args.output)
    return int(test.pvalue < args.level)


if __name__ == "__main__":
    sys.exit(main())
