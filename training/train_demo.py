# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
Trains the embedded demo checkpoint: three small BERT experts and a router on SST-2, on one CPU core.

    python training/train_demo.py --teacher sentence-transformers/all-MiniLM-L6-v2

1. A lowercase WordPiece vocabulary from the training text.
2. The experts, from scratch. With `--teacher`, an encoder is fine-tuned first; the experts learn its answers to the
   training text and to perturbed copies of it (distillation as in Tang et al. 2019, arXiv 1903.12136).
3. Copies of them in `w8a8`, which cost less on shares: each learns from its expert layer by layer, as in `cotrain.py`.
4. The router, on a tenth of the training data that the experts have not seen, for what it learns is where they fail.
5. Lambda, on another tenth. The validation split is evaluated once, at the end.
"""

from __future__ import annotations

import argparse
import copy
import random
import shlex
import shutil
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import EvalResult
from tokenizers import BertWordPieceTokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    get_linear_schedule_with_warmup,
    set_seed,
)

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.model_card import SecureRouterModelCardData
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.recipes.cotrained_pool import widest
from hf_securerouter.recipes.data import split_by_sentence
from hf_securerouter.recipes.distillation import Follower
from hf_securerouter.routing import lambda_for_budget


ROOT = Path(__file__).resolve().parent.parent


EXPERTS = [(1, 64, 1e-3), (2, 128, 1e-3), (3, 192, 5e-4)]  # layers, hidden size, learning rate


HEAD_SIZE = 32


QUOTAS = [3, 2, 1]  # texts of a batch of six that each expert serves; lambda is chosen for their mean cost


MAX_LENGTH = 64


FUNCTIONS = {"hidden_act": "exact", "softmax": "exact", "precision": "w8a8"}


SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


ID2LABEL = {0: "negative", 1: "positive"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Train the embedded demo checkpoint: three experts and a router.")
    parser.add_argument("--train-file", help="JSON lines (.gz allowed) with `sentence` and `label`; default: GLUE's")
    parser.add_argument("--validation-file", help="the same, for the figures in the card; default: GLUE's")
    parser.add_argument("--teacher", help="name or folder of an encoder to fine-tune and distil; default: none")
    parser.add_argument("--teacher-epochs", type=float, default=2, help="0 for a teacher that is fine-tuned already")
    parser.add_argument("--perturbed-copies", type=int, default=5, help="of the training text, for the teacher")
    parser.add_argument("--vocab-size", type=int, default=6000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--cotrain-epochs", type=float, default=1, help="in which copies in w8a8 learn")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "hf_securerouter" / "assets" / "demo")
    parser.add_argument("--card", type=Path, default=ROOT / "model_cards" / "demo-sst2.md")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args(argv)


def load_split(split, path):
    """Texts and labels of a split, from a file of the user's or from the Hub."""
    from datasets import load_dataset

    if path:
        rows = load_dataset("json", data_files=path, split="train")
    else:
        rows = load_dataset("nyu-mll/glue", "sst2", split=split)
    return [text.strip() for text in rows["sentence"]], torch.tensor(rows["label"])


def train_tokenizer(texts, vocab_size):
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    letters = sorted(set("".join(texts).lower()) - {" "})
    # Named in advance, the letters have the same ids in each run, which settle what is merged first of equal counts.
    reserved = SPECIAL_TOKENS + letters + [f"##{letter}" for letter in letters]
    wordpiece.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=reserved, show_progress=False
    )
    return BertTokenizer(vocab=wordpiece.get_vocab(), do_lower_case=True, model_max_length=MAX_LENGTH)


def perturb(texts, count, words, rng):
    """New texts for the teacher to label: phrases joined, cut, and with some of their words replaced."""
    for _ in range(count):
        text = rng.choice(texts).split()
        if rng.random() < 0.5:
            text += [rng.choice([",", ".", "and", "but"]), *rng.choice(texts).split()]
        if rng.random() < 0.3:
            start = rng.randrange(len(text))
            text = text[start : start + rng.randint(2, 20)]
        yield " ".join(rng.choice(words) if rng.random() < 0.15 else word for word in text)


def encode(tokenizer, texts):
    return tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)["input_ids"]


def batches(encoded, size, rng=None):
    """Indices in batches of similar length, so that little is padding; in random order if a generator is given."""
    order = list(range(len(encoded)))
    if rng:
        rng.shuffle(order)
    for start in range(0, len(order), 50 * size):
        block = sorted(order[start : start + 50 * size], key=lambda index: len(encoded[index]))
        block = [block[first : first + size] for first in range(0, len(block), size)]
        if rng:
            rng.shuffle(block)
        yield from block


def collate(encoded, batch):
    # Every vocabulary here has [PAD] at 0, as BERT's has.
    input_ids = pad_sequence([torch.tensor(encoded[index]) for index in batch], batch_first=True)
    lengths = torch.tensor([len(encoded[index]) for index in batch])
    return {"input_ids": input_ids, "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()}


@torch.no_grad()
def predict(model, encoded, output="logits"):
    model.eval()
    rows = {}
    for batch in batches(encoded, 64):
        rows.update(zip(batch, getattr(model(**collate(encoded, batch)), output), strict=True))
    return torch.stack([rows[index] for index in range(len(encoded))])


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).float().mean().item()


def classification_loss(model, inputs, targets):
    """Cross-entropy to classes, or to a teacher's probabilities."""
    return F.cross_entropy(model(**inputs).logits.float(), targets)


def routing_loss(model, inputs, targets):
    return model(**inputs, labels=targets).loss


def following_loss(model, inputs, targets):
    """Cross-entropy, and what the layers of a copy differ by from those of its expert."""
    output = model(**inputs)
    return output.loss + F.cross_entropy(output.logits, targets)


def train(name, model, encoded, targets, epochs, learning_rate, seed, loss_of=classification_loss, batch_size=64):
    """AdamW, linear warm-up and decay."""
    steps = max(1, int(epochs * len(encoded) / batch_size))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.05, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    rng, done = random.Random(seed), 0
    while done < steps:
        for batch in batches(encoded, batch_size, rng):
            loss = loss_of(model, collate(encoded, batch), targets[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done % 200 == 0 or done == steps:
                print(f"{name}: step {done} of {steps}, loss {loss.item():.4f}", flush=True)
            if done == steps:
                break


def train_teacher(args, texts, labels):
    """The teacher's logits as a function of texts, and the whole words of its vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    teacher = AutoModelForSequenceClassification.from_pretrained(args.teacher, id2label=ID2LABEL)
    if args.teacher_epochs:
        teacher.train()
        encoded = encode(tokenizer, texts)
        train("teacher", teacher, encoded, labels, args.teacher_epochs, 8e-5, args.seed, batch_size=32)

    def ask(texts):
        return predict(teacher, encode(tokenizer, texts))

    return ask, [word for word in sorted(tokenizer.get_vocab()) if word.isascii() and word.isalpha() and len(word) > 2]


def train_expert(args, tokenizer, shape, encoded, targets):
    layers, hidden_size, learning_rate = shape
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // HEAD_SIZE,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=MAX_LENGTH,
        id2label=ID2LABEL,
    )
    expert = BertForSequenceClassification(config).train()
    train(f"{layers} x {hidden_size}", expert, encoded, targets, args.epochs, learning_rate, args.seed)
    return expert


def cotrain_expert(args, expert, encoded):
    """A copy of an expert that computes with narrow numbers, and learns its answers."""
    own = copy.deepcopy(expert)
    use_functions(own, **FUNCTIONS)
    name = f"{expert.config.num_hidden_layers} x {expert.config.hidden_size} in {FUNCTIONS['precision']}"
    targets = predict(expert, encoded).softmax(-1)
    follower = Follower(own, copy.deepcopy(expert)).train()
    train(name, follower, encoded, targets, args.cotrain_epochs, 1e-3, args.seed, following_loss)
    return own


def build_pool(experts, tokenizer):
    """The experts and a router whose summary encoder starts as the smallest of them."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{folder}/{index}" for index in range(len(experts))]
        for name, expert in zip(names, experts, strict=True):
            expert.save_pretrained(name)
            tokenizer.save_pretrained(name)
        return SecureRouterForSequenceClassification.from_expert_pretrained(
            router=names[0],
            experts=names,
            expert_mpc=[FUNCTIONS] * len(names),
            router_objective="utility",
            router_hidden_size=64,
            quotas=QUOTAS,
        )


def train_router(args, model, encoded, labels):
    """Trains the router to predict which experts are right; the experts stay as they are."""
    model.experts.requires_grad_(False)
    model.train()
    model.experts.eval()
    train("router", model, encoded, labels, args.epochs, 1e-3, args.seed, routing_loss)
    model.experts.requires_grad_(True)


def report(model, exact, encoded, labels):
    """Accuracy of the routed pool and of each expert, exact and as it is; what each needs of its bounds; and the share
    of the texts that each served."""
    chosen = predict(model, encoded, "expert_indices")
    figures = {"accuracy": accuracy(predict(model, encoded), labels)}
    for index, (expert, before) in enumerate(zip(model.experts, exact, strict=True)):
        figures[f"accuracy of expert {index} alone"] = accuracy(predict(expert, encoded), labels)
        figures[f"accuracy of expert {index} before it was co-trained"] = accuracy(predict(before, encoded), labels)
        figures[f"widest value of expert {index} over its bound"] = widest(
            expert, (collate(encoded, batch) for batch in batches(encoded, 64))
        )
    return figures, [round((chosen == index).float().mean().item(), 4) for index in range(len(model.experts))]


def save(args, model, tokenizer, figures, shares, details):
    """The checkpoint in half precision and its card, twice: beside the weights and among the model cards."""
    model.model_card_data = SecureRouterModelCardData(
        model_name="demo-sst2",
        language="en",
        license="apache-2.0",
        datasets=["nyu-mll/glue"],
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="nyu-mll/glue",
                dataset_name="SST-2 (GLUE)",
                dataset_config="sst2",
                dataset_split="validation",
                metric_type="accuracy",
                metric_value=round(figures["accuracy"], 4),
            )
        ],
        securerouter={"routing_shares": shares, "training": details},
    )
    tokenizer.save_pretrained(args.output_dir)
    model.half().save_pretrained(args.output_dir)
    args.card.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.output_dir / "README.md", args.card)


def command_line(args):
    """The command for the card: files by their name only, for folders are this machine's."""
    parts = ["python", "training/train_demo.py"]
    for option in ("train_file", "validation_file", "teacher"):
        if getattr(args, option):
            name = getattr(args, option)
            parts += ["--" + option.replace("_", "-"), Path(name).name if Path(name).exists() else name]
    for option in ("teacher_epochs", "perturbed_copies", "vocab_size", "epochs", "cotrain_epochs", "seed"):
        parts += ["--" + option.replace("_", "-"), f"{getattr(args, option):g}"]
    return shlex.join(parts)


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(1)
    set_seed(args.seed)
    rng = random.Random(args.seed)

    all_texts, all_labels = load_split("train", args.train_file)
    (texts, labels), (router_texts, router_labels), (tenth, tenth_labels) = [
        ([all_texts[index] for index in part], all_labels[part])
        for part in split_by_sentence(all_texts, [0.1, 0.1], args.seed)
    ]
    tokenizer = train_tokenizer(texts, args.vocab_size)
    targets, details = labels, {"command": f"`{command_line(args)}`"}
    if args.teacher:
        ask, words = train_teacher(args, texts, labels)
        details["teacher's accuracy, held-out tenth"] = f"{accuracy(ask(tenth), tenth_labels):.4f}"
        words += sorted({word for text in texts for word in text.split()})
        new_texts = list(perturb(texts, args.perturbed_copies * len(texts), words, rng))
        known = (F.one_hot(labels, len(ID2LABEL)) + ask(texts).softmax(-1)) / 2
        targets = torch.cat([known, ask(new_texts).softmax(-1)])
        texts += new_texts
        new_texts = list(perturb(router_texts, args.perturbed_copies * len(router_texts), words, rng))
        router_labels = torch.cat([router_labels, ask(new_texts).argmax(-1)])
        router_texts += new_texts

    encoded = encode(tokenizer, texts)
    exact = [train_expert(args, tokenizer, shape, encoded, targets) for shape in EXPERTS]
    narrow = [cotrain_expert(args, expert, encoded) for expert in exact]
    model = build_pool(narrow, tokenizer)
    train_router(args, model, encode(tokenizer, router_texts), router_labels)

    encoded, costs = encode(tokenizer, tenth), model.config.expert_costs
    budget = sum(quota * cost for quota, cost in zip(QUOTAS, costs, strict=True)) / sum(QUOTAS)
    model.config.routing_lambda = lambda_for_budget(predict(model, encoded, "router_logits"), costs, budget)
    print("held-out tenth:", *report(model, exact, encoded, tenth_labels), flush=True)

    validation, validation_labels = load_split("validation", args.validation_file)
    figures, shares = report(model, exact, encode(tokenizer, validation), validation_labels)
    print("validation:", figures, shares, flush=True)
    details |= {name: f"{figure:.4f}" for name, figure in figures.items()}
    save(args, model, tokenizer, figures, shares, details)


if __name__ == "__main__":
    main()
