# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Inputs that are longer than their reader allows, and the side of their padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from .errors import SecureRouterValueError, warn


T = TypeVar("T", torch.Tensor, torch.Tensor | None)


def padded_right(inputs: Mapping[str, T]) -> dict[str, T]:
    """The inputs with each text at the start of its row, so that padding is on the right.

    Heads read the first token, and most encoders number positions from the start of the row: with padding on the left
    they would read padding, at positions that depend on the batch. Zeros of the mask between tokens stay there.

    Args:
        inputs (`Mapping[str, torch.Tensor]`): `input_ids` of shape (B, T), padded on either side, and optionally
            `attention_mask` and `token_type_ids`. Without a mask everything is a token.

    Returns:
        `dict[str, torch.Tensor]`: The inputs, of the same shapes.

    Raises:
        `SecureRouterValueError`: `attention_mask` has another shape than `input_ids`, or a row without a token.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if ids is None or mask is None:
        return dict(inputs)
    if mask.shape != ids.shape:
        raise SecureRouterValueError(
            f"`attention_mask` should be of shape {tuple(ids.shape)}, as `input_ids`, got {tuple(mask.shape)}: pass 1 "
            "for each token and 0 for padding, or leave it out."
        )
    is_token = mask.bool()
    if not torch.compiler.is_compiling():  # a compiled graph cannot look at values
        if bool(is_token[:, 0].all()):
            return dict(inputs)
        empty = (~is_token.any(dim=1)).nonzero()
        if len(empty):
            raise SecureRouterValueError(
                f"`attention_mask` should have a 1 in each row, got only zeros in row {int(empty[0])}: an empty text "
                "still has the tokenizer's special tokens."
            )
    start = is_token.int().argmax(dim=1, keepdim=True)
    source = (torch.arange(ids.shape[1], device=ids.device) + start) % ids.shape[1]
    return {name: value if value is None else value.gather(1, source) for name, value in inputs.items()}


def truncate(inputs: Mapping[str, T], length: int | None, separators: bool = True) -> tuple[dict[str, T], int]:
    """Truncate a batch: a text loses its end, a pair the end of its longer text, as with a tokenizer's
    `"longest_first"`. The separators stay.

    The last token of a row is taken as the separator, and its first occurrence as the end of the first text; so token
    types, which not every tokenizer has, are not needed.

    Args:
        inputs (`Mapping[str, torch.Tensor]`): `input_ids` of shape (B, T), padded on the right, and optionally
            `attention_mask` and `token_type_ids`.
        length (`int`, *optional*): Tokens to keep; None for all.
        separators (`bool`): Whether texts end with a separator. Without one a text loses its end, whatever it is.

    Returns:
        `tuple[dict[str, torch.Tensor], int]`: The inputs, (B, at most `length`) each, and how many texts were cut.

    Raises:
        `SecureRouterValueError`: `attention_mask` has zeros between the tokens of a text that is too long.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if length is None or ids is None or ids.shape[1] <= length:
        return dict(inputs), 0
    places = torch.arange(ids.shape[1], device=ids.device)
    last = torch.full_like(ids[:, 0], len(places) - 1) if mask is None else (mask.bool() * places).argmax(dim=1)
    if not separators:
        cut = {name: value if value is None else value[:, :length] for name, value in inputs.items()}
        return cut, _count(last >= length)
    end = (ids == ids.gather(1, last[:, None])).int().argmax(dim=1)  # of the first text
    first, second = ((end - 1).clamp(min=0), (last - end - 1).clamp(min=0))  # tokens of each text
    excess = (last + 1 - length).clamp(min=0)
    # First the longer text loses its surplus, then both texts lose alike; the longer text keeps an odd token.
    alone = torch.minimum((first - second).abs(), excess)
    from_first = torch.where(first > second, alone + (excess - alone) // 2, (excess - alone + 1) // 2)
    from_first = torch.minimum(from_first, first)
    kept = places[:length]
    source = torch.where(kept < (end - from_first)[:, None], kept, kept + from_first[:, None])
    cut_off = excess > 0
    if mask is not None and _count(cut_off & (mask.bool().sum(dim=1) <= last)):
        raise SecureRouterValueError(
            f"`attention_mask` has zeros between tokens in a text of more than {length} tokens, which cannot be cut: "
            "remove the tokens that should not be read, or shorten the text."
        )
    source[:, -1] = torch.where(cut_off, last, source[:, -1])
    shorter = {name: value if value is None else value.gather(1, source) for name, value in inputs.items()}
    return shorter, _count(cut_off)


def _count(rows: Tensor) -> int:
    """How many rows are marked; 0 in a compiled graph, which cannot look at values."""
    return 0 if torch.compiler.is_compiling() else int(rows.sum())


def truncate_with_warning(inputs: Mapping[str, T], length: int | None, separators: bool = True) -> dict[str, T]:
    """The inputs, truncated by [`truncate`], with a [`SecureRouterWarning`] if any text was too long."""
    shorter, count = truncate(inputs, length, separators)
    if count:
        warn(
            f"{count} texts have more than the {length} tokens of `max_length`: the rest is cut off. Pass "
            f"`truncation=True, max_length={length}` to the tokenizer to choose yourself what is cut."
        )
    return shorter


def last_tokens(inputs: Mapping[str, torch.Tensor | None]) -> Tensor:
    """The place of each text's last token, (B,); without a mask everything is a token."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    assert ids is not None
    if mask is None:
        return torch.full_like(ids[:, 0], ids.shape[1] - 1)
    return (mask.bool() * torch.arange(ids.shape[1], device=ids.device)).argmax(dim=1)


def with_padding_id(inputs: Mapping[str, torch.Tensor | None], padding: int) -> dict[str, torch.Tensor | None]:
    """The inputs with the id `padding` wherever the mask is 0. Causal classifiers find the last token by this id."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if ids is None or mask is None:
        return dict(inputs)
    return {**inputs, "input_ids": ids.masked_fill(~mask.bool(), padding)}


def copy_into_padding(values: Tensor, attention_mask: Tensor) -> Tensor:
    """Replace padding rows, (B, T, H), by copies of their text's last token; the attention mask may be longer than T.

    A copy equals its token in every layer, so padding stays within the bounds of tokens; the attention mask keeps the
    copies out of every result.
    """
    is_token = attention_mask[:, : values.shape[1]].bool()
    positions = torch.arange(is_token.shape[1]).expand(is_token.shape)
    last = torch.where(is_token, positions, -1).amax(1).clamp(min=0)
    source = torch.where(is_token, positions, last[:, None])
    return values.gather(1, source[:, :, None].expand_as(values))
