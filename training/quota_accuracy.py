# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What quotas cost in accuracy, by the size of a batch, on a labelled file.

    python training/quota_accuracy.py --validation-file sst2/validation.jsonl.gz

Under `routing_privacy="quota"` every batch is served in the same shares, whatever is in it. The file is cut into
batches at random, several times; each batch is routed by `assign_by_quota` as under encryption, and by the router
without quotas. The shares are those of `config.quotas`, rounded to the batch.
"""

import argparse
import gzip
import json

import torch

from hf_securerouter.classification import DEMO_CHECKPOINT, load_checkpoint
from hf_securerouter.routing import assign_by_quota, choose_expert, quotas_for_shares


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Accuracy of quotas against unconstrained routing.")
    parser.add_argument("--model", default=str(DEMO_CHECKPOINT))
    parser.add_argument(
        "--validation-file", required=True, help="JSON lines (.gz allowed) with `sentence` and `label`"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[6, 8, 16, 32, 64, 128])
    parser.add_argument("--shuffles", type=int, default=20, help="ways to cut the file into batches")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args(argv)


@torch.inference_mode()
def answers(model, tokenizer, texts, size=64):
    """The router's outputs (B, K), and the class that each expert gives (B, K)."""
    scores, classes = [], []
    for start in range(0, len(texts), size):
        batch = tokenizer(texts[start : start + size], padding=True, truncation=True, return_tensors="pt")
        scores.append(model(**batch).router_logits)
        rows = len(batch["input_ids"])
        by_expert = [model.run_experts(dict(batch), torch.full((rows,), k)) for k in range(len(model.experts))]
        classes.append(torch.stack([logits.argmax(-1) for logits in by_expert], 1))
    return torch.cat(scores), torch.cat(classes)


def main(argv=None):
    args = parse_args(argv)
    model, tokenizer = load_checkpoint(args.model)
    opener = gzip.open if args.validation_file.endswith(".gz") else open
    with opener(args.validation_file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    scores, classes = answers(model, tokenizer, [row["sentence"] for row in rows])
    right = classes == torch.tensor([row["label"] for row in rows])[:, None]
    costs = torch.tensor(model.config.expert_costs)

    def report(name, chosen, rows=slice(None)):
        accuracy = right[rows].gather(1, chosen[:, None]).double().mean().item()
        return {"batch": name, "accuracy": round(accuracy, 4), "cost": round(costs[chosen].mean().item(), 4)}

    results = [report("unconstrained", choose_expert(scores, model.config.expert_costs, model.config.routing_lambda))]
    results += [report(f"expert {k} alone", torch.full((len(rows),), k)) for k in range(len(costs))]
    generator = torch.Generator().manual_seed(args.seed)
    shares = [quota / sum(model.config.quotas) for quota in model.config.quotas]
    for size in args.batch_sizes:
        quotas = quotas_for_shares(shares, size)
        parts = []
        for _ in range(args.shuffles):
            order = torch.randperm(len(rows), generator=generator)
            for batch in order.split(size):
                filled = batch[torch.arange(size) % len(batch)]
                chosen = assign_by_quota(scores[filled], quotas, model.config.expert_costs)
                parts.append((batch, chosen[: len(batch)]))
        batches, chosen = (torch.cat(part) for part in zip(*parts, strict=True))
        results.append(report(size, chosen, batches) | {"quotas": quotas})
    for result in results:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
