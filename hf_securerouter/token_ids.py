# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A tokenizer's output as callers have it (lists of any length, arrays, tensors), as tensors; ids beyond a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .errors import BadRowsError, SecureRouterValueError
from .families import encoder_config


NAMES = ("input_ids", "attention_mask", "token_type_ids")


def as_id_tensors(inputs: Mapping[str, Any], pad_token_id: int) -> dict[str, Tensor]:
    """A tokenizer's output as int64 tensors on the CPU; rows of different length are padded on the right.

    Args:
        inputs (`Mapping`): `input_ids`, and optionally `attention_mask` (1 for tokens, 0 for padding) and
            `token_type_ids`: tensors or arrays of shape (B, T), or B lists, arrays or tensors of integers.
        pad_token_id (`int`): The token id of padding.

    Returns:
        `dict[str, torch.Tensor]`: What was given, and `attention_mask`; (B, T) each.

    Raises:
        `BadRowsError`: A row has no token, holds anything but integers, or has another length than its `input_ids`.
        `SecureRouterValueError`: `input_ids` are missing, or not of rows.
    """
    if inputs.get("input_ids") is None:
        raise SecureRouterValueError("`inputs` should hold `input_ids`: pass what a tokenizer returned.")
    rows = {name: _rows(name, inputs[name]) for name in NAMES if inputs.get(name) is not None}
    ids = rows["input_ids"]
    rows.setdefault("attention_mask", [torch.ones_like(row) for row in ids])
    for name, given in rows.items():
        if len(given) != len(ids):
            raise SecureRouterValueError(
                f"`{name}` should have a row for each of the {len(ids)} rows of `input_ids`, got {len(given)}."
            )
        bad = {
            index: f"should be of {len(own)} integers, as its `input_ids`, got {len(row)}"
            for index, (own, row) in enumerate(zip(ids, given, strict=True))
            if len(row) != len(own)
        }
        if name == "attention_mask":
            bad |= {
                index: "should hold 1 for tokens and 0 for padding, got another number"
                for index, row in enumerate(given)
                if bool(((row != 0) & (row != 1)).any())
            }
        if bad:
            raise BadRowsError(name, bad)
    fill = {"input_ids": pad_token_id}
    return {
        name: pad_sequence(given, batch_first=True, padding_value=fill.get(name, 0)) for name, given in rows.items()
    }


def check_ids(name: str, ids: Tensor, size: int | None) -> None:
    """Refuse ids that a table of `size` rows does not have.

    Args:
        name (`str`): `input_ids` or `token_type_ids`.
        ids (`torch.Tensor`): Integers of shape (B, T), padding included.
        size (`int`, *optional*): Rows of the table; None if that is not known.

    Raises:
        `BadRowsError`: Rows have such an id; each is named with its first one.
    """
    if size is None:
        return
    beyond = (ids < 0) | (ids >= size)
    if not bool(beyond.any()):
        return
    bad = {}
    for row in beyond.any(dim=1).nonzero().flatten().tolist():
        place = int(beyond[row].int().argmax())
        bad[row] = f"has the id {int(ids[row, place])} at place {place}, and this model has ids from 0 to {size - 1}"
    raise BadRowsError(name, bad)


def vocabulary_of(*configs: Any) -> int | None:
    """How many token ids all of these models have; None if no config says it."""
    sizes = [getattr(encoder_config(config), "vocab_size", None) for config in configs]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def _rows(name: str, value: Any) -> list[Tensor]:
    """The rows of one name, as int64 tensors."""
    given = list(value) if getattr(value, "ndim", 1) and hasattr(value, "__iter__") else []
    if not given or not all(_is_row(row) for row in given):
        raise SecureRouterValueError(
            f"`{name}` should be of shape (examples, tokens), or a list with a list of integers for each text, got "
            f"{type(value).__name__}{tuple(getattr(value, 'shape', (len(given),)))}: for one text, pass "
            "`tokenizer([text])`."
        )
    rows, bad = [], {}
    for index, row in enumerate(given):
        tensor = row.detach().cpu() if isinstance(row, Tensor) else _tensor(row)
        if tensor is None or tensor.dim() != 1 or not bool((tensor == tensor.long()).all()):
            bad[index] = "should be a list of integers"
        elif not len(tensor):
            bad[index] = "is empty: an empty text still has the tokenizer's special tokens"
        else:
            rows.append(tensor.long())
    if bad:
        raise BadRowsError(name, bad)
    return rows


def _is_row(row: Any) -> bool:
    if isinstance(row, (Tensor, np.ndarray)):
        return row.ndim > 0
    return isinstance(row, Sequence) and not isinstance(row, (str, bytes))


def _tensor(row: Any) -> Tensor | None:
    try:
        array = np.asarray(row)
    except ValueError:  # lists of different length in one row
        return None
    if array.dtype.kind not in "iubf":
        return None
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
