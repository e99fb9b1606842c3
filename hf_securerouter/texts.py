# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Texts as callers have them (lists, arrays, generators, columns of a table), as one list; which cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from .errors import BadRowsError, SecureRouterValueError


Text = str | tuple[str, str]

_WANTED = "should be a text or a (text, pair) tuple of two"


def as_texts(inputs: Any) -> list[Text]:
    """The texts of `inputs`, in their order.

    Args:
        inputs (iterable or `Mapping`): Texts and (text, pair) tuples in a list, tuple, array, generator, or column of
            pandas or `datasets`; dicts with `text` and perhaps `text_pair`; or one dict of such columns.

    Returns:
        `list[str | tuple[str, str]]`

    Raises:
        `BadRowsError`: A row is no text, is empty, or has half of a surrogate pair. All such rows are named.
        `SecureRouterValueError`: `inputs` is one text, a whole table, without order, or without a row.
    """
    if isinstance(inputs, Mapping):
        inputs = _rows_of(inputs)
    # A table would give the names of its columns as texts, and a set its texts in any order.
    is_one = isinstance(inputs, (str, bytes, bytearray, Set)) or hasattr(inputs, "columns")
    if is_one or not isinstance(inputs, Iterable) or getattr(inputs, "ndim", 1) == 0:
        raise SecureRouterValueError(
            f"`inputs` should be a list with at least one text, got {type(inputs).__name__}: pass `[text]`, or one "
            "column of a table."
        )
    rows = [_text_of(row) for row in inputs]
    if not rows:
        raise SecureRouterValueError("`inputs` should be a list with at least one text, got none: pass `[text]`.")
    bad = {index: problem for index, (_, problem) in enumerate(rows) if problem is not None}
    if bad:
        raise BadRowsError("inputs", bad)
    return [text for text, _ in rows]


def unreadable(text: str) -> str | None:
    """Why a text cannot be classified: it is empty, or has half of a surrogate pair; None if it can."""
    if not text.strip():
        return "is empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half of a surrogate pair at character {error.start}, which is no text in UTF-8"
    return None


def _rows_of(columns: Mapping[str, Any]) -> Iterable[Any]:
    """The rows of columns `text` and perhaps `text_pair`."""
    if "text" not in columns or isinstance(columns["text"], str):
        raise SecureRouterValueError(
            f"`inputs` should be a dict with `input_ids`, or with a list of texts as `text`, got a dict of "
            f"{', '.join(map(repr, columns)) or 'nothing'}: pass what a tokenizer returned, or a list of texts."
        )
    if columns.get("text_pair") is None:
        return columns["text"]
    texts, pairs = list(columns["text"]), list(columns["text_pair"])
    if len(texts) != len(pairs):
        raise SecureRouterValueError(
            f"`inputs` has {len(texts)} texts and {len(pairs)} pairs: pass one `text_pair` for each `text`."
        )
    return zip(texts, pairs, strict=True)


def _text_of(row: Any) -> tuple[Any, str | None]:
    """A row as a text or a pair, and what is wrong with it."""
    if isinstance(row, Mapping) and "text" in row:
        row = row["text"] if row.get("text_pair") is None else (row["text"], row["text_pair"])
    if isinstance(row, str):
        return str(row), unreadable(row)
    if row is None or (isinstance(row, float) and row != row):
        return None, f"is missing ({row})"
    if not isinstance(row, (tuple, list, np.ndarray)) or len(row) not in (1, 2):
        return None, f"{_WANTED}, got {type(row).__name__}"
    for place, part in zip(("text", "pair"), row, strict=False):
        problem = unreadable(part) if isinstance(part, str) else f"is of type {type(part).__name__}, and no text"
        if problem is not None:
            return None, f"has a {place} that {problem}"
    parts = tuple(str(part) for part in row)
    return (parts if len(parts) == 2 else parts[0]), None
