# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Packages of the extra `train`, which a run needs beside those that are always installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from hf_securerouter.errors import MissingPackageError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.recipes.arguments import DataArguments


FIGURE = ("matplotlib",)


@refuses_unknown
def check_packages(args: DataArguments, more: Sequence[str] = ()) -> None:
    """
    Refuses to begin what would end in an `ImportError`.

    Args:
        args ([`DataArguments`]): Where rows come from: those of the Hub, of Parquet and of `DatasetDict.save_to_disk`
            need `datasets`.
        more (sequence of `str`): Modules that are needed as well, such as `FIGURE`.

    Raises:
        `MissingPackageError`: Some are not installed; it names all of them.
    """
    needed = [*(["datasets"] if _reads_datasets(args) else []), *more]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError("A run with these arguments", missing, "train")


def _reads_datasets(args: DataArguments) -> bool:
    files = [args.train_file, args.validation_file]
    if args.task_name is not None and args.data_dir is None and None in files:
        return True  # the Hub's
    if args.dataset_dir is not None:
        folder = Path(args.dataset_dir)
        return (folder / "dataset_dict.json").exists() or any(folder.glob("*.parquet"))
    return any(file is not None and file.endswith(".parquet") for file in files)
