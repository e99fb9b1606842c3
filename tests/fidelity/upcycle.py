# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Classifiers with mixtures of experts, made out of a BERT encoder and trained as the dense one beside them.

    python tests/fidelity/upcycle.py --encoder sentence-transformers/all-MiniLM-L6-v2 --task_name sst2 \
        --data_dir glue --experts 4 8 --output upcycled
    python tests/fidelity/masked_fidelity.py --model upcycled/sst2-4 --inputs glue/sst2/validation.jsonl.gz

For each number of experts (0 is the dense one) it reports the score, the 95 % interval of its difference to the dense
one over the same inputs, the share of tokens that each expert of each layer serves, and the score with a capacity of
once and twice the even share of a text of `--max_length` tokens. The results are written after every model, under a
temporary name first. The second command compares encrypted labels and logits with clear ones.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from masked_fidelity import write
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_securerouter import SecureMoeForSequenceClassification
from hf_securerouter.mpc.protocols.masked.dispatch import switch_capacity
from hf_securerouter.recipes.arguments import DataArguments
from hf_securerouter.recipes.data import open_data, tokenize
from hf_securerouter.reports import bootstrap


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Train mixtures of experts out of a dense encoder.")
    parser.add_argument("--encoder", required=True, help="name or folder of a BERT encoder")
    parser.add_argument("--task_name", required=True, help="a GLUE task")
    parser.add_argument("--data_dir", help="folder with TASK/train.jsonl[.gz]")
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, required=True, help="folder of the models and of results.json")
    return parser.parse_args(argv)


def expert_use(model, batches):
    """The share of tokens by expert, for each sparse layer."""
    counts = 0
    for batch in batches:
        with torch.no_grad():
            routed = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True)
        live = batch["attention_mask"].bool()
        chosen = [logits[live].argmax(-1) for logits in routed.router_logits]
        counts = counts + torch.stack([torch.bincount(one, minlength=model.config.num_experts) for one in chosen])
    return (counts / counts.sum(-1, keepdim=True)).double().round(decimals=3).tolist()


def main(argv=None):
    args = parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    samples = {"max_train_samples": args.max_train_samples, "max_eval_samples": args.max_eval_samples}
    data = open_data(DataArguments(task_name=args.task_name, data_dir=args.data_dir, **samples))
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    train, held_out = (
        tokenize(data.task, data.rows(split), tokenizer, args.max_length) for split in ("train", "validation")
    )
    truth, score, results, answers = np.array([row["labels"] for row in held_out]), data.task.score(), [], {}
    for experts in (0, *args.experts):
        set_seed(args.seed)
        labels = {"id2label": data.task.id2label, "label2id": {name: i for i, name in data.task.id2label.items()}}
        model = BertForSequenceClassification.from_pretrained(args.encoder, **labels)
        if experts:
            model = SecureMoeForSequenceClassification.from_dense(model, num_experts=experts)
        training = TrainingArguments(
            str(args.output / "runs"),
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            warmup_steps=0.1,
            seed=args.seed,
            save_strategy="no",
            report_to=[],
        )
        trainer = Trainer(
            model, training, train_dataset=train, processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        trainer.train()
        name = f"{args.task_name}-{experts or 'dense'}"
        trainer.save_model(args.output / name)

        def predicted(trainer=trainer):
            logits = trainer.predict(held_out).predictions
            return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)

        answers[experts] = predicted()
        result = {"model": name, "score": score(answers[experts], truth), "parameters": model.num_parameters()}
        if experts:

            def gain(rows, own=answers[experts]):
                return score(own[rows], truth[rows]) - score(answers[0][rows], truth[rows])

            result["difference"] = [gain(np.arange(len(truth))), *bootstrap(gain, len(truth))]
            result["expert_use"] = expert_use(model.eval(), trainer.get_eval_dataloader(held_out))
            for factor in (1, 2):
                model.config.expert_capacity = factor * switch_capacity(args.max_length, experts, 1)
                result[f"capacity_{factor}"] = [model.config.expert_capacity, score(predicted(), truth)]
        results.append(result)
        print(json.dumps(result), flush=True)
        write(args.output / "results.json", {**vars(args), "output": str(args.output), "results": results})


if __name__ == "__main__":
    main()
