# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune an encoder into the classifier that `masked_fidelity.py` measures; a few minutes on one core.

    python tests/fidelity/fine_tune.py --encoder sentence-transformers/all-MiniLM-L6-v2 \
        --train-file sst2/train.jsonl.gz --output minilm-6
    python tests/fidelity/fine_tune.py --encoder minilm-6 --repeat-layers 2 \
        --train-file sst2/train.jsonl.gz --output minilm-12

Files are JSON lines, gzipped or not, with `sentence` and `label`. `--repeat-layers 2` stacks all layers twice.
"""

import argparse
import copy
import random

import torch
from masked_fidelity import read_rows
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
    set_seed,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Fine-tune an encoder into a sequence classifier.")
    parser.add_argument("--encoder", required=True, help="name or folder of an encoder")
    parser.add_argument("--repeat-layers", type=int, default=1, help="how many times the stack of layers is repeated")
    parser.add_argument("--train-file", required=True)
    parser.add_argument("--validation-file", help="prints the accuracy on its first 200 lines")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", required=True, help="folder to save to")
    return parser.parse_args(argv)


def repeat_layers(model, times):
    layers = model.base_model.encoder.layer
    layers.extend(copy.deepcopy(layer) for _ in range(times - 1) for layer in list(layers))
    model.config.num_hidden_layers = len(layers)


def main(argv=None):
    args = parse_args(argv)
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    model = AutoModelForSequenceClassification.from_pretrained(args.encoder)
    repeat_layers(model, args.repeat_layers)
    model.base_model.embeddings.requires_grad_(False)

    def collate(rows):
        batch = tokenizer(
            [row["sentence"].strip() for row in rows],
            padding=True,
            truncation=True,
            max_length=args.max_length,
            return_tensors="pt",
        )
        return batch | {"labels": torch.tensor([row["label"] for row in rows])}

    rows, rng = read_rows(args.train_file), random.Random(args.seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.learning_rate, weight_decay=0.01, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    model.train()
    for step in range(1, args.steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**collate(rng.sample(rows, args.batch_size))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == args.steps:
            print(f"step {step} of {args.steps}, loss {loss.item():.4f}", flush=True)

    model.eval()
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    if args.validation_file:
        batch = collate(read_rows(args.validation_file, 200))
        with torch.no_grad():
            found = model(**batch).logits.argmax(-1)
        print(f"accuracy {(found == batch['labels']).float().mean().item():.3f}")


if __name__ == "__main__":
    main()
