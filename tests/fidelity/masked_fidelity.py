# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Logits under the masked protocol against those of the same model in clear text.

    python tests/fidelity/masked_fidelity.py --model minilm-6 --inputs sst2/validation.jsonl.gz \
        --max-length 48 --limit-error 0.02 --output results.json

Every run is a new session: new shares and masks of the weights, new masks and words for every input. A run reports the
largest and the root mean square error of all logits, and how many labels changed among the inputs whose clear margin
(the difference of the two largest logits) exceeds `MARGIN`. `--depths 1 2 4` measures the same model cut to its first
layers, with its head as it is, which shows how the error grows.

The results are written after every batch, under a temporary name first. The exit status is 1 if an error reaches
`--limit-error` or the label of an input with a margin changed.
"""

import argparse
import gzip
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from hf_securerouter.mpc.convert import to_mpc


MARGIN = 0.05


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Compare logits under the masked protocol with clear text.")
    parser.add_argument("--model", required=True, help="folder of a fine-tuned sequence classifier")
    parser.add_argument("--inputs", required=True, help="JSON lines (.gz allowed) with `sentence` or `text`")
    parser.add_argument("--limit", type=int, default=200, help="inputs of a run")
    parser.add_argument("--runs", type=int, default=5, help="sessions for each depth")
    parser.add_argument("--max-length", type=int, default=64, help="tokens that every input is padded to")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--depths", type=int, nargs="+", help="numbers of layers; default: all of the model's")
    parser.add_argument("--limit-error", type=float, default=0.02, help="what no logit's error may reach")
    parser.add_argument("--output", type=Path, help="file of the results")
    return parser.parse_args(argv)


def read_rows(path, limit=None):
    """The rows of a file of JSON lines, gzipped or not."""
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rt") as lines:
        return [json.loads(line) for line in islice(lines, limit)]


def write(path, results):
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(results, indent=2))
    temporary.replace(path)


@torch.no_grad()
def clear_logits(model, tokenizer, texts, max_length, batch_size):
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        encoded = tokenizer(batch, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        parts.append(model(**encoded).logits)
    return torch.cat(parts)


def compare(clear, encrypted):
    """The errors of the logits, and the labels that changed although the clear margin is above `MARGIN`."""
    error = (encrypted - clear).abs()
    best = clear.topk(2).values
    decided = best[:, 0] - best[:, 1] > MARGIN
    changed = clear.argmax(-1) != encrypted.argmax(-1)
    return {
        "inputs": len(clear),
        "inputs_with_margin": int(decided.sum()),
        "max_error": float(error.max()),
        "rms_error": float(error.square().mean().sqrt()),
        "label_changes": int((changed & decided).sum()),
    }


def run(secure, texts, clear, batch_size):
    """One session; yields the comparison after every batch."""
    found, start = [], time.perf_counter()
    with secure.local_session(batch_size=batch_size) as session:
        for first in range(0, len(texts), batch_size):
            found.append(session(texts[first : first + batch_size]).logits)
            encrypted = torch.cat(found)
            seconds = time.perf_counter() - start
            yield {**compare(clear[: len(encrypted)], encrypted), "seconds": round(seconds, 1)}


def main(argv=None):
    args = parse_args(argv)
    logging.set_verbosity_error()  # a model cut to fewer layers does not load all tensors
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = read_rows(args.inputs, args.limit)
    texts = [(row["text"] if "text" in row else row["sentence"]).strip() for row in rows]
    runs = []
    results = {"max_length": args.max_length, "batch_size": args.batch_size, "runs": runs}
    for depth in args.depths or [None]:
        cut = {} if depth is None else {"num_hidden_layers": depth}
        model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32, **cut).eval()
        clear = clear_logits(model, tokenizer, texts, args.max_length, args.batch_size)
        secure = to_mpc(model, tokenizer, protocol="masked", max_length=args.max_length)
        for number in range(args.runs):
            runs.append({})
            for part in run(secure, texts, clear, args.batch_size):
                runs[-1] = {"layers": model.config.num_hidden_layers, "run": number} | part
                if args.output:
                    write(args.output, results)
            print(json.dumps(runs[-1]), flush=True)
    largest = max(run["max_error"] for run in runs)
    changes = sum(run["label_changes"] for run in runs)
    # `not <` also fails what is no number.
    failed = not largest < args.limit_error or changes > 0
    print(f"{'FAILED' if failed else 'passed'}: largest error {largest:.4f}, {changes} label(s) changed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
