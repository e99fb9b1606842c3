# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tables of texts and labels: CSV, JSON lines, Parquet, and folders of the `datasets` library."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown


SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")  # the first three also with .gz behind them


@dataclass(frozen=True)
class Table:
    """
    Rows of a file, each with the place where a user finds it.

    Args:
        name (`str`): The file, or the folder and the split.
        rows (list of `dict`): One value for each column.
        numbers (list of `int`): Line or row of each, from 1 on.
        unit (`str`): What `numbers` count: `"line"` or `"row"`.
        typed (`bool`): Whether values have types; without them, as in CSV, all are strings.
        class_names (`dict`): Names of the classes of those columns whose data set says them.
    """

    name: str
    rows: list[dict[str, Any]]
    numbers: list[int]
    unit: str = "line"
    typed: bool = True
    class_names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The names of the first row's columns; none without a row."""
        return list(self.rows[0]) if self.rows else []

    def place(self, index: int) -> str:
        """Where row `index` stands, such as "reviews.csv, line 3"."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"


def file_stem(path: Path) -> str:
    """A file's name without its suffixes."""
    return Path(path.name.removesuffix(".gz")).stem


@refuses_unknown
def read_table(path: Path) -> Table:
    """
    All rows of a file.

    Args:
        path (`Path`): `.csv` with a header, `.jsonl` or `.json` with one object a line, also packed as `.gz`, or
            `.parquet`.

    Raises:
        `SecureRouterValueError`: The file is not there, has another suffix, or holds something else than its suffix
            says.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise SecureRouterValueError(f"{path.name!r} should end in {', '.join(SUFFIXES)} (.gz allowed).")
    if not path.is_file():
        raise SecureRouterValueError(f"There is no file {str(path)!r}.")
    if suffix == ".parquet":
        from datasets import Dataset

        return _from_dataset(Dataset.from_parquet(str(path), keep_in_memory=True), path.name)
    try:
        with _open_text(path) as file:
            found = list(_csv_rows(file, path.name) if suffix == ".csv" else _json_rows(file, path.name))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise SecureRouterValueError(f"{path.name} cannot be read as UTF-8 {suffix[1:].upper()}: {error}.") from error
    return Table(path.name, [row for _, row in found], [line for line, _ in found], typed=suffix != ".csv")


@refuses_unknown
def read_split(folder: Path, split: str) -> Table:
    """
    The rows of a split in a folder.

    Args:
        folder (`Path`): Written by `DatasetDict.save_to_disk`, or with one file for each split, such as `train.csv`
            and `validation.csv`.
        split (`str`): `"train"` or `"validation"`.

    Raises:
        `SecureRouterValueError`: The folder has no such split, or more than one file of it.
    """
    if (folder / "state.json").exists():
        raise SecureRouterValueError(
            f"`dataset_dir` {folder.name!r} holds a single split: save a `DatasetDict` with `train` and `validation`."
        )
    if (folder / "dataset_dict.json").exists():
        from datasets import load_from_disk

        splits = load_from_disk(str(folder))
        if split not in splits:
            raise SecureRouterValueError(
                f"`dataset_dir` {folder.name!r} should have a split {split!r}, got {', '.join(splits)}."
            )
        return _from_dataset(splits[split], f"{folder.name}/{split}")
    suffixes = [*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES[:3])]
    found = [path for suffix in suffixes if (path := folder / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        raise SecureRouterValueError(
            f"`dataset_dir` {folder.name!r} should hold one file {split}{SUFFIXES[0]}, {split}{SUFFIXES[1]} or "
            f"{split}{SUFFIXES[3]}, or be a folder of `DatasetDict.save_to_disk`, got "
            f"{', '.join(path.name for path in found) or 'none'}."
        )
    return read_table(found[0])


def _open_text(path: Path) -> TextIO:
    # "utf-8-sig" drops the mark that spreadsheets put in front.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _csv_rows(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(file, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # where the record begins: a quoted field may hold line ends
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise SecureRouterValueError(f"{name}, line {line} is no CSV: {error}.") from error
        if not record:
            continue
        if header is None:
            header = [column.strip() for column in record]
            if len(set(header)) != len(header):
                raise SecureRouterValueError(f"{name}, line {line} names a column twice: {', '.join(header)}.")
        elif len(record) != len(header):
            raise SecureRouterValueError(
                f"{name}, line {line} has {len(record)} fields where the header has {len(header)}: quote texts that "
                "hold commas."
            )
        else:
            yield line, dict(zip(header, record, strict=True))


def _json_rows(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise SecureRouterValueError(f"{name}, line {line} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise SecureRouterValueError(f"{name}, line {line} should be a JSON object, got {text.strip()[:40]!r}.")
        yield line, row


def _from_dataset(dataset: Any, name: str) -> Table:
    """The rows of a `datasets.Dataset`."""
    names = {column: list(kind.names) for column, kind in dataset.features.items() if hasattr(kind, "names")}
    rows = dataset.to_list()
    return Table(name, rows, list(range(1, len(rows) + 1)), "row", class_names=names)
