# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""GLUE's tasks as rows of token ids: from the Hub, from files, or from a folder of JSON lines."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import torch

from hf_securerouter import SecureRouterValueError
from hf_securerouter.lengths import truncate
from hf_securerouter.recipes.tasks import TASKS


def load_split(args, split):
    """The rows of "train" or "validation", each a dict of the task's columns and `label`.

    A file of the user's comes first, then `data_dir` with its `TASK/SPLIT.jsonl[.gz]`, then the Hub.
    """
    path = args.train_file if split == "train" else args.validation_file
    if path is None and args.data_dir is not None:
        found = sorted(Path(args.data_dir, args.task_name).glob(f"{split}.jsonl*"))
        if not found:
            raise SecureRouterValueError(
                f"`data_dir` should hold {args.task_name}/{split}.jsonl or .jsonl.gz, got {args.data_dir!r}."
            )
        path = found[0]
    if path is not None:
        rows = _read(Path(path))
    else:
        from datasets import load_dataset

        name = "validation_matched" if (args.task_name, split) == ("mnli", "validation") else split
        rows = list(load_dataset("nyu-mll/glue", args.task_name, split=name, cache_dir=args.cache_dir))
    most = args.max_train_samples if split == "train" else args.max_eval_samples
    rows = rows[:most]
    wanted = {*TASKS[args.task_name].columns, "label"}
    if not rows or not wanted <= rows[0].keys():
        raise SecureRouterValueError(
            f"`task_name` {args.task_name!r} wants rows with {', '.join(sorted(wanted))}, got "
            f"{sorted(rows[0]) if rows else 'no row'}: rename the columns of the file."
        )
    return rows


def _read(path):
    if path.name.removesuffix(".gz").endswith(".csv"):
        from datasets import load_dataset

        return list(load_dataset("csv", data_files=str(path), split="train"))
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as file:
        return [json.loads(line) for line in file if line.strip()]


def tokenize(task, rows, tokenizer, max_length):
    """Rows as the model takes them: token ids, masks and `labels`, not padded."""
    texts = [[row[column].strip() for row in rows] for column in task.columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    kind = float if task.regression else int
    return [
        {name: values[index] for name, values in encoded.items()} | {"labels": kind(row["label"])}
        for index, row in enumerate(rows)
    ]


def split_rows(task, rows, shares, seed):
    """
    Indices of the rest and of one seeded random part for each of `shares`. SST-2's phrases stay with their sentence,
    so that no part holds pieces of another.
    """
    if task.name == "sst2":
        from hf_securerouter.recipes.data import split_by_sentence

        return split_by_sentence([row["sentence"] for row in rows], shares, seed)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    parts = []
    for share in shares:
        size = round(share * len(rows))
        parts.append(sorted(order[:size]))
        order = order[size:]
    return [sorted(order), *parts]


def perturb(rows, copies, special_ids, seed):
    """Copies of rows in which every sixth token or so is another one of the data; their `labels` mean nothing."""
    rng = random.Random(seed)
    seen = [token for row in rows for token in row["input_ids"] if token not in special_ids]
    perturbed = []
    for row in rows * copies:
        ids = [
            rng.choice(seen) if token not in special_ids and rng.random() < 0.15 else token
            for token in row["input_ids"]
        ]
        perturbed.append(row | {"input_ids": ids})
    return perturbed


def shortened(rows, length):
    """Rows with no more than `length` tokens, None for all; see [`hf_securerouter.lengths.truncate`]."""

    def shorter(row):
        if length is None or len(row["input_ids"]) <= length:
            return row
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in row]
        kept, _ = truncate({name: torch.tensor([row[name]]) for name in names}, length)
        return row | {name: values[0].tolist() for name, values in kept.items()}

    return [shorter(row) for row in rows]


def split_by_sentence(texts, shares, seed):
    """
    Indices of the rest and of one random part for each of `shares`. SST-2 holds the phrases of a sentence beside it:
    a phrase goes with the longest text that contains it, so that parts differ as training and validation do.
    """
    families, with_phrase = {}, {}
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        words = texts[index].split()
        phrases = {tuple(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)}
        longer = with_phrase.get(tuple(words[:3]), ())
        root = next((i for i in longer if f" {texts[index]} " in f" {texts[i]} "), index)
        families.setdefault(root, []).append(index)
        if root == index:
            for phrase in phrases:
                with_phrase.setdefault(phrase, []).append(index)
    order = list(families.values())
    random.Random(seed).shuffle(order)
    parts = []
    for share in shares:
        parts.append([])
        while order and len(parts[-1]) < share * len(texts):
            parts[-1] += order.pop()
    parts.insert(0, [index for family in order for index in family])
    if not all(parts):
        raise SystemExit(f"{len(texts)} texts, many of them parts of each other, are too few to train on.")
    return parts
