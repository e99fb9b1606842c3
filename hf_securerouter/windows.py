# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Long texts in windows: each text becomes the same number of inputs, whose logits are averaged.

A window starts with the last tokens of the one before it, as many as the stride. A text of fewer windows is filled up
with copies of its own, which do not count, so that the number of inputs says nothing of a text's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import BadRowsError, SecureRouterValueError, warn
from .texts import Text


@dataclass(frozen=True)
class Windows:
    """How long texts are read.

    Args:
        most (`int`): Windows of every text.
        stride (`int`): Tokens that a window shares with the one before it, without special tokens.

    Raises:
        `SecureRouterValueError`: `most` is less than 1, `stride` less than 0, or there is a stride and one window.
    """

    most: int = 1
    stride: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("max_windows", self.most, 1), ("stride", self.stride, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SecureRouterValueError(f"`{name}` should be an integer of at least {least}, got {value!r}.")
        if self.stride and self.most == 1:
            raise SecureRouterValueError(
                f"`stride` is {self.stride}, and one window of a text shares no token: pass `max_windows` too."
            )

    def split(
        self, tokenizer: Any, texts: Sequence[Text], length: int
    ) -> tuple[list[dict[str, list[int]]], list[int]]:
        """Tokenize texts; of a pair the longer text is cut, and every window has the whole other one.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): A fast one.
            texts (`list`): Texts and (text, pair) tuples.
            length (`int`): Most tokens of a window, special tokens included.

        Returns:
            `tuple[list[dict], list[int]]`: `most` windows of each text, one after another, as the tokenizer returns a
            text; and for each text how many of its windows count. A warning counts texts that are longer than that.

        Raises:
            `BadRowsError`: The other text of a pair leaves no room for a window.
            `SecureRouterValueError`: The tokenizer is a slow one, or `stride` does not fit into `length`.
        """
        if not tokenizer.is_fast:
            raise SecureRouterValueError("`max_windows` needs a fast tokenizer, and `tokenizer` is a slow one.")
        room = length - tokenizer.num_special_tokens_to_add()
        if self.stride >= room:
            raise SecureRouterValueError(
                f"`stride` should be less than {room}, the tokens of a window, got {self.stride}."
            )
        found = [self._windows(tokenizer, text, length) for text in texts]
        if bad := {row: "is a pair whose shorter text fills a window" for row, own in enumerate(found) if not own}:
            raise BadRowsError("inputs", bad)
        if long := sum(len(own) > self.most for own in found):
            warn(f"{long} of {len(texts)} texts have more than {self.most} windows; what follows was not read.")
        counts = [min(len(own), self.most) for own in found]
        rows = [own[place % count] for own, count in zip(found, counts, strict=True) for place in range(self.most)]
        return rows, counts

    def _windows(self, tokenizer: Any, text: Text, length: int) -> list[dict[str, list[int]]]:
        """All windows of a text; none if it is a pair without room for one."""
        parts = (text,) if isinstance(text, str) else text
        sizes = [len(ids) for ids in tokenizer(list(parts), add_special_tokens=False, verbose=False)["input_ids"]]
        cut, other = ("only_first", sum(sizes[1:])) if sizes[0] == max(sizes) else ("only_second", sizes[0])
        if length - tokenizer.num_special_tokens_to_add(pair=len(parts) > 1) - other <= self.stride:
            return []
        encoded = tokenizer(
            *parts, truncation=cut, max_length=length, stride=self.stride, return_overflowing_tokens=True
        )
        names = [name for name in tokenizer.model_input_names if name in encoded]
        return [{name: encoded[name][row] for name in names} for row in range(len(encoded["input_ids"]))]

    def averaged(self, logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """The mean of the logits of each text's windows, those that count: (B `most`, C) to (B, C)."""
        counted = torch.arange(self.most, device=logits.device) < torch.tensor(counts, device=logits.device)[:, None]
        weights = counted.to(logits.dtype) / counted.sum(1, keepdim=True)
        return (logits.unflatten(0, (-1, self.most)) * weights[..., None]).sum(1)

    def grouped(self, values: Sequence[Any], counts: Sequence[int]) -> list[Any]:
        """A value of each window as a list for each text, of the windows that count; with one window, the value."""
        if self.most == 1:
            return list(values)
        return [list(values[start * self.most :][:count]) for start, count in enumerate(counts)]
