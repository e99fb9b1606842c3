# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A user's own data: which columns hold text and label, what the labels are, and whether every row has both."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.recipes.arguments import DataArguments
from hf_securerouter.recipes.fitting import Row
from hf_securerouter.recipes.tables import Table, file_stem, read_split, read_table
from hf_securerouter.recipes.tasks import Task


# Columns that are taken without being named, if a file has those of one line only; `text` comes before all others.
_TEXTS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("sentence",))
_LABELS = ("label_text", "labels", "class", "category", "target", "score")

CLASS_METRICS = ("accuracy", "macro_f1")
VALUE_METRICS = ("pearson", "spearmanr")


class OwnData:
    """
    Rows of a user's files, checked before anything is trained.

    Labels may be strings or integers, which are classes, or floats, which make the task a regression. The names of
    the classes are sorted, integers by their value; a `datasets` folder that names its classes keeps their order.

    Args:
        args ([`DataArguments`]): With `train_file` and `validation_file`, or `dataset_dir`.
        labels (sequence of `str`, *optional*): Names of the classes of a pool that is trained already, none of them
            for a regression; then the training rows are read when they are asked for, and labels may also be class
            ids.

    Attributes:
        task ([`Task`]): Columns, labels and metrics of these data.

    Raises:
        `SecureRouterValueError`: A file cannot be read, a column is missing or ambiguous, or a row has no text, no
            label, or in the validation split a label that training has not. The message names file and line.
    """

    @refuses_unknown
    def __init__(self, args: DataArguments, labels: Sequence[str] | None = None) -> None:
        self._args = args
        self._most = {"train": args.max_train_samples, "validation": args.max_eval_samples}
        validation = _read(args, "validation")
        first = validation if labels is not None else _read(args, "train")
        self._takes_ids = labels is not None
        columns = _text_columns(args, first)
        label_column = _label_column(args, first)
        if "label" in columns:
            raise SecureRouterValueError(
                f"{first.name} has texts in a column 'label', which is the name that rows have their labels under: "
                "rename that column."
            )
        if labels is None:
            _check(first, (*columns, label_column))
            labels = _class_names(first, label_column)
        metrics = CLASS_METRICS if labels else VALUE_METRICS
        scored = metrics[:1] if labels else metrics
        self.task = Task(_name(args), columns, tuple(labels), metrics, scored, label_column)
        tables = {"validation": validation} | ({} if first is validation else {"train": first})
        self._rows = {split: self._checked(table) for split, table in tables.items()}

    def rows(self, split: str) -> list[Row]:
        """The rows of "train" or "validation": the task's text columns, and `label` as a class id or a value."""
        if split not in self._rows:
            self._rows[split] = self._checked(_read(self._args, split))
        return self._rows[split][: self._most[split]]

    def _checked(self, table: Table) -> list[Row]:
        task = self.task
        _check(table, (*task.columns, task.label_column))
        ids = {name: index for index, name in task.id2label.items()}
        if self._takes_ids:
            ids = {str(index): index for index in task.id2label} | ids
        rows = []
        for index, row in enumerate(table.rows):
            label: float | int
            if task.regression:
                label = _value(table, index, task.label_column)
            else:
                name = _class_name(table, row[task.label_column], task.label_column)
                if name not in ids:
                    raise SecureRouterValueError(
                        f"{table.place(index)} has the label {name!r}, which training has not: its labels are "
                        f"{', '.join(task.labels)}."
                    )
                label = ids[name]
            rows.append({column: row[column] for column in task.columns} | {"label": label})
        return rows


def _read(args: DataArguments, split: str) -> Table:
    if args.dataset_dir is not None:
        table = read_split(Path(args.dataset_dir), split)
    else:
        path = args.train_file if split == "train" else args.validation_file
        if path is None:
            raise SecureRouterValueError(
                f"Own data need `--{split}_file`, or `--dataset_dir` with both splits; GLUE needs `--task_name`."
            )
        table = read_table(Path(path))
    if not table.rows:
        raise SecureRouterValueError(f"{table.name} holds no row.")
    return table


def _name(args: DataArguments) -> str:
    """A name that can be that of a folder."""
    if args.dataset_name is not None:
        name = args.dataset_name
    elif args.dataset_dir is not None:
        name = Path(args.dataset_dir).resolve().name
    else:
        name = file_stem(Path(args.train_file or args.validation_file or ""))
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "data"


def _text_columns(args: DataArguments, table: Table) -> tuple[str, ...]:
    if args.text_column is not None:
        named = (args.text_column, *([] if args.text_pair_column is None else [args.text_pair_column]))
        _require(table, named, "--text_column" if args.text_pair_column is None else "--text_pair_column")
        return named
    if args.text_pair_column is not None:
        _require(table, ("text", args.text_pair_column), "--text_column and --text_pair_column")
        return "text", args.text_pair_column
    if "text" in table.columns:
        return ("text", "text_pair") if "text_pair" in table.columns else ("text",)
    found = [names for names in _TEXTS if set(names) <= set(table.columns)]
    if len(found) != 1:
        raise SecureRouterValueError(
            f"{table.name} has the columns {', '.join(table.columns)}: name that of the text by `--text_column`, of "
            "pairs that of the second text by `--text_pair_column`."
        )
    return found[0]


def _label_column(args: DataArguments, table: Table) -> str:
    if args.label_column is not None:
        _require(table, (args.label_column,), "--label_column")
        return args.label_column
    found = ["label"] if "label" in table.columns else [name for name in _LABELS if name in table.columns]
    if len(found) != 1:
        raise SecureRouterValueError(
            f"{table.name} has the columns {', '.join(table.columns)}: name that of the label by `--label_column`."
        )
    return found[0]


def _require(table: Table, columns: Sequence[str], option: str = "") -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise SecureRouterValueError(
            f"{table.name} has no column {', '.join(map(repr, missing))}, only {', '.join(table.columns)}: "
            + (f"pass another {option}." if option else "both splits need the same columns.")
        )


def _check(table: Table, columns: Sequence[str]) -> None:
    """Refuses a row without a text or without a label; the label's column is the last one."""
    _require(table, columns)
    for index, row in enumerate(table.rows):
        for column in columns[:-1]:
            text = row.get(column)
            if text is None or (isinstance(text, str) and not text.strip()):
                raise SecureRouterValueError(f"{table.place(index)} has no text in column {column!r}.")
            if not isinstance(text, str):
                raise SecureRouterValueError(
                    f"{table.place(index)} should have a text in column {column!r}, got {text!r}."
                )
        label = row.get(columns[-1])
        if label is None or (isinstance(label, str) and not label.strip()) or label != label:
            raise SecureRouterValueError(f"{table.place(index)} has no label in column {columns[-1]!r}.")
        if columns[-1] in table.class_names and label == -1:  # what `datasets` writes for a label that is kept secret
            raise SecureRouterValueError(f"{table.place(index)} has no label in column {columns[-1]!r}, but -1.")
        if not isinstance(label, (str, bool, int, float)):
            raise SecureRouterValueError(
                f"{table.place(index)} should have a string or a number in column {columns[-1]!r}, got {label!r}."
            )


def _class_names(table: Table, column: str) -> tuple[str, ...]:
    """The names of the classes in the order of their ids, none of them for a regression."""
    if column in table.class_names:
        return tuple(table.class_names[column])
    values = [row[column] for row in table.rows]
    if all(_is_number(value, table.typed) for value in values) and not all(_is_integer(value) for value in values):
        return ()
    names = sorted({_class_name(table, value, column) for value in values})
    if all(_is_integer(name) for name in names):
        names.sort(key=int)
    if len(names) < 2:
        raise SecureRouterValueError(
            f"{table.name} has one label only in column {column!r}, {names[0]!r}: a classifier needs two or more."
        )
    return tuple(names)


def _class_name(table: Table, value: Any, column: str) -> str:
    if column in table.class_names and isinstance(value, int):
        return table.class_names[column][value]
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any, typed: bool) -> bool:
    if typed:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        float(value)
    except ValueError:
        return False
    return True


def _value(table: Table, index: int, column: str) -> float:
    value = table.rows[index][column]
    if not _is_number(value, table.typed) or not math.isfinite(float(value)):
        raise SecureRouterValueError(
            f"{table.place(index)} should have a finite number in column {column!r}, as the training rows have, got "
            f"{value!r}."
        )
    return float(value)
