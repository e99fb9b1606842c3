# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Rows of a data set, GLUE's or the user's own, as token ids; and how they are split, perturbed and truncated."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hf_securerouter.admission import reads_last_token
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.families import encoder_config
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.lengths import truncate
from hf_securerouter.recipes.argument_values import check_values
from hf_securerouter.recipes.arguments import DataArguments
from hf_securerouter.recipes.fitting import Row
from hf_securerouter.recipes.own_data import OwnData
from hf_securerouter.recipes.packages import check_packages
from hf_securerouter.recipes.tables import read_table
from hf_securerouter.recipes.tasks import GLUE, TASKS, Task


_OWN = ("dataset_dir", "dataset_name", "text_column", "text_pair_column", "label_column")


class Data(Protocol):
    """A data set.

    Attributes:
        task ([`Task`]): Its description.
    """

    task: Task

    def rows(self, split: str) -> list[Row]:
        """The rows of "train" or "validation": the task's text columns, and `label` as a class id or a value."""


@refuses_unknown
def open_data(args: DataArguments, labels: Sequence[str] | None = None) -> Data:
    """
    The data set that the arguments name.

    Args:
        args ([`DataArguments`]): With `task_name` for GLUE, or with the user's own files.
        labels (sequence of `str`, *optional*): Of own data, names of the classes of a pool that is trained already;
            then the training rows are read when they are asked for.

    Raises:
        `SecureRouterValueError`: No data or two kinds of data are named, a number of rows is less than 1, or own data
            are not as [`OwnData`] wants them.
        `MissingPackageError`: They need `datasets`, which is not installed.
    """
    check_values(args)
    check_packages(args)
    named = [f"--{name}" for name in _OWN if getattr(args, name) is not None]
    if args.task_name is not None:
        if named:
            raise SecureRouterValueError(
                f"`--task_name {args.task_name}` is a task of GLUE, whose columns are known: leave out "
                f"{', '.join(named)}, or `--task_name` for data of your own."
            )
        return GlueData(args)
    files = args.train_file or args.validation_file
    if files and args.dataset_dir:
        raise SecureRouterValueError(
            "`--dataset_dir` holds both splits: leave it out, or `--train_file` and `--validation_file`."
        )
    if not files and not args.dataset_dir:
        raise SecureRouterValueError(
            "A run needs data: pass `--task_name` for a task of GLUE, or `--train_file` and `--validation_file`, or "
            "`--dataset_dir`."
        )
    return OwnData(args, labels)


class GlueData:
    """
    A task of GLUE: a file of the user's comes first, then `data_dir` with its `TASK/SPLIT.jsonl[.gz]`, then the Hub.

    Args:
        args ([`DataArguments`]): With `task_name`.
    """

    def __init__(self, args: DataArguments) -> None:
        assert args.task_name is not None
        self._args, self.task = args, TASKS[args.task_name]

    def rows(self, split: str) -> list[Row]:
        """
        The rows of "train" or "validation", each a dict of the task's columns and `label`.

        Raises:
            `SecureRouterValueError`: The file or the folder lacks the split or one of the task's columns.
        """
        args, name = self._args, self.task.name
        path = args.train_file if split == "train" else args.validation_file
        if path is None and args.data_dir is not None:
            found = sorted(Path(args.data_dir, name).glob(f"{split}.jsonl*"))
            if not found:
                raise SecureRouterValueError(
                    f"`data_dir` should hold {name}/{split}.jsonl or .jsonl.gz, got {args.data_dir!r}."
                )
            path = str(found[0])
        if path is not None:
            rows = read_table(Path(path)).rows
        else:
            from datasets import load_dataset

            own = "validation_matched" if (name, split) == ("mnli", "validation") else split
            rows = list(load_dataset(GLUE, name, split=own, cache_dir=args.cache_dir))
        rows = rows[: args.max_train_samples if split == "train" else args.max_eval_samples]
        wanted = {*self.task.columns, "label"}
        if not rows or not wanted <= rows[0].keys():
            raise SecureRouterValueError(
                f"`task_name` {name!r} wants rows with {', '.join(sorted(wanted))}, got "
                f"{sorted(rows[0]) if rows else 'no row'}: rename the columns of the file."
            )
        return rows


@refuses_unknown
def rows_digest(task: Task, rows: Sequence[Row]) -> str:
    """
    Hex SHA-256 of the texts and labels of rows, by which a run that goes on knows its own rows.

    Args:
        task ([`Task`]): Their description.
        rows (sequence of `dict`): With the task's text columns and `label`.
    """
    digest = hashlib.sha256()
    for row in rows:
        # As `tokenize` takes them, so that the same rows from another kind of file are the same.
        label = struct.pack("<f", float(row["label"])).hex() if task.regression else int(row["label"])
        digest.update(json.dumps([*(row[column].strip() for column in task.columns), label]).encode())
    return digest.hexdigest()


@refuses_unknown
def tokenize(task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Row]:
    """
    Rows as a model takes them.

    Args:
        task ([`Task`]): Their description.
        rows (sequence of `dict`): With the task's text columns and `label`.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of all experts.
        max_length (`int`): Tokens that are kept, special tokens included.

    Returns:
        list of `dict`: Token ids, masks and `labels` (`int`, of a regression `float`), not padded.
    """
    texts = [[row[column].strip() for row in rows] for column in task.columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    kind = float if task.regression else int
    return [
        {name: values[index] for name, values in encoded.items()} | {"labels": kind(row["label"])}
        for index, row in enumerate(rows)
    ]


@refuses_unknown
def token_counts(task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """
    How many tokens rows have before anything is cut off, special tokens included.

    Args:
        task ([`Task`]), rows (sequence of `dict`), tokenizer (`PreTrainedTokenizerBase`): As for [`tokenize`].
    """
    texts = [[row[column].strip() for row in rows] for column in task.columns]
    return [len(ids) for ids in tokenizer(*texts, verbose=False)["input_ids"]]


@refuses_unknown
def split_rows(task: Task, rows: Sequence[Row], shares: Sequence[float], seed: int) -> list[list[int]]:
    """
    Seeded random parts of rows. Phrases stay with their sentence, so that no part holds pieces of another's.

    Args:
        task ([`Task`]): Their description.
        rows (sequence of `dict`): Not tokenized.
        shares (sequence of `float`): Size of each part, as a share of all rows.
        seed (`int`): Of the draw.

    Returns:
        list of lists of `int`: Indices of the rest, then those of one part for each share.

    Raises:
        `SecureRouterValueError`: A part would be empty.
    """
    if task.has_phrases:
        return split_by_sentence([row[task.columns[0]] for row in rows], shares, seed)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    rest, *sizes = part_sizes(len(rows), shares)
    if not all((rest, *sizes)):
        raise SecureRouterValueError(
            f"`rows` are {len(rows)}, too few for {len(sizes) + 1} parts of which none is empty: pass more rows."
        )
    parts = []
    for size in sizes:
        parts.append(sorted(order[:size]))
        order = order[size:]
    return [sorted(order), *parts]


def part_sizes(count: int, shares: Sequence[float]) -> list[int]:
    """Rows of the rest and of each part that [`split_rows`] makes of `count` rows without phrases."""
    sizes, left = [], count
    for share in shares:
        sizes.append(min(left, round(share * count)))
        left -= sizes[-1]
    return [left, *sizes]


def split_by_sentence(texts: Sequence[str], shares: Sequence[float], seed: int) -> list[list[int]]:
    """
    Seeded random parts of texts of which some are phrases of others, as in SST-2: a phrase goes with the longest text
    that contains it, so that parts differ from each other as training and validation split do.

    Args:
        texts (sequence of `str`): The texts.
        shares (sequence of `float`): Least size of each part, as a share of all texts.
        seed (`int`): Of the draw.

    Returns:
        list of lists of `int`: Indices of the rest, then those of one part for each share.

    Raises:
        `SecureRouterValueError`: A part would be empty.
    """
    families: dict[int, list[int]] = {}
    with_phrase: dict[tuple[str, ...], list[int]] = {}
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
    parts: list[list[int]] = []
    for share in shares:
        parts.append([])
        while order and len(parts[-1]) < share * len(texts):
            parts[-1] += order.pop()
    parts.insert(0, [index for family in order for index in family])
    if not all(parts):
        raise SecureRouterValueError(
            f"{len(texts)} texts, many of them parts of each other, are too few to train on: pass more rows."
        )
    return parts


@refuses_unknown
def perturb(rows: Sequence[Row], copies: int, special_ids: set[int], seed: int) -> list[Row]:
    """
    Copies of tokenized rows in which about every seventh token is replaced by another one of the data.

    Args:
        rows (sequence of `dict`): With `input_ids`.
        copies (`int`): Copies of each row.
        special_ids (set of `int`): Tokens that stay, and that replace no other.
        seed (`int`): Of the draw.

    Returns:
        list of `dict`: Of the same lengths; their `labels` are those of the originals, and may be wrong.
    """
    rng = random.Random(seed)
    seen = [token for row in rows for token in row["input_ids"] if token not in special_ids]
    perturbed = []
    for row in list(rows) * copies:
        ids = [
            rng.choice(seen) if token not in special_ids and rng.random() < 0.15 else token
            for token in row["input_ids"]
        ]
        perturbed.append(row | {"input_ids": ids})
    return perturbed


@refuses_unknown
def shortened(rows: Sequence[Row], length: int | None, config: PreTrainedConfig) -> list[Row]:
    """
    Tokenized rows as an expert of a pool reads them: texts of an expert on a causal encoder lose their end, those of
    others keep their separators; see [`hf_securerouter.lengths.truncate`].

    Args:
        rows (sequence of `dict`): With `input_ids`, and whatever else there is of `attention_mask` and
            `token_type_ids`.
        length (`int`, *optional*): Tokens to keep of each row; None for all.
        config (`PreTrainedConfig`): Of the expert, or of the encoder that a router shares with it.
    """
    separators = not reads_last_token(encoder_config(config))

    def shorter(row: Row) -> Row:
        if length is None or len(row["input_ids"]) <= length:
            return row
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in row]
        kept, _ = truncate({name: torch.tensor([row[name]]) for name in names}, length, separators)
        return row | {name: values[0].tolist() for name, values in kept.items()}

    return [shorter(row) for row in rows]
