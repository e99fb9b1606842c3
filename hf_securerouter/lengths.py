# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Inputs that are longer than what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch


T = TypeVar("T", torch.Tensor, torch.Tensor | None)


def cut(inputs: Mapping[str, T], length: int | None) -> tuple[dict[str, T], int]:
    """
    The first tokens of a batch; a text that is cut keeps its last token, the separator.

    Args:
        inputs (`Mapping[str, torch.Tensor]`): `input_ids` of shape (B, T), padded on the right, and whatever else
            there is of `attention_mask` and `token_type_ids`.
        length (`int`, *optional*): Tokens to keep; None for all.

    Returns:
        `tuple[dict[str, torch.Tensor], int]`: The inputs, (B, at most `length`) each, and how many texts were cut.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if length is None or ids is None or ids.shape[1] <= length:
        return dict(inputs), 0
    if mask is None:
        last = torch.full_like(ids[:, 0], ids.shape[1] - 1)
    else:
        last = (mask.bool() * torch.arange(ids.shape[1], device=ids.device)).argmax(dim=1)
    beyond = (last >= length).nonzero().squeeze(1)
    shorter = dict(inputs)
    for name, value in inputs.items():
        if value is not None:
            kept = value[:, :length].clone()
            kept[beyond, -1] = value[beyond, last[beyond]]
            shorter[name] = kept
    return shorter, len(beyond)
