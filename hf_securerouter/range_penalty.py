# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How far an expert's values go beyond the bounds that they have on shares: watched in training, and penalised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.nn import functional

from .number_format import MARGIN


# Ranges.


class RangePenalty:
    """How far values go beyond what their bounds leave as margin; made by [`range_penalty`].

    Args:
        attention_mask (`torch.Tensor` of shape (B, T)): 0 where a token is padding, whose values do not count.

    Attributes:
        widest (`float`): The largest absolute value over its bound, so far: above 1 the encrypted answer is garbage.
    """

    def __init__(self, attention_mask: torch.Tensor) -> None:
        self._is_token = attention_mask.bool()
        self._terms: list[torch.Tensor] = []
        self.widest = 0.0

    def __call__(self) -> torch.Tensor:
        """Returns:
        `torch.Tensor`: A scalar, 0 where all values keep their margin: by how much of their limit values exceed
        it (below a fifth: squared), a sum over values and layers and a mean over tokens. It has a gradient.
        """
        return sum(self._terms, torch.zeros((), device=self._is_token.device))

    def add(self, values: torch.Tensor, limit: float, pairs: bool) -> None:
        """Notes values that should stay within `limit`; see [`watch`]."""
        is_token, (low, high) = self._is_token, values.detach().aminmax()
        if max(-low.item(), high.item()) <= min(limit, MARGIN * self.widest * limit):
            return
        if pairs:
            is_token = (is_token[:, None, :] * is_token[:, :, None]).unsqueeze(1)
        elif values.dim() > 2:
            is_token = is_token.view(*is_token.shape, *[1] * (values.dim() - 2))
        else:
            is_token = torch.ones_like(values, dtype=torch.bool)
        largest = (values.detach().abs() * is_token).amax().item() / limit
        self.widest = max(self.widest, largest / MARGIN)
        if largest > 1:  # rarely, once an expert is trained, and the rest takes long
            over = functional.relu(values.abs() / limit - 1) * is_token
            penalty = functional.smooth_l1_loss(over, torch.zeros_like(over), reduction="sum", beta=0.2)
            self._terms.append(penalty / self._is_token.sum())


_watched: ContextVar[RangePenalty | None] = ContextVar("range_penalty", default=None)


@contextmanager
def range_penalty(attention_mask: torch.Tensor) -> Iterator[RangePenalty]:
    """Watches the values of every expert of a narrow precision that runs inside.

    Args:
        attention_mask (`torch.Tensor` of shape (B, T)): 0 where a token is padding.

    Example:
        ```python
        with range_penalty(batch["attention_mask"]) as penalty:
            loss = expert(**batch).loss
        (loss + 0.1 * penalty()).backward()
        ```
    """
    penalty = RangePenalty(attention_mask)
    token = _watched.set(penalty)
    try:
        yield penalty
    finally:
        _watched.reset(token)


def watch(values: torch.Tensor, bound: float, pairs: bool = False) -> None:
    """Tells the penalty, if there is one, of values that should stay below a bound by the margin.

    Args:
        values (`torch.Tensor`): Of shape (B, T, ...) or (B, C); of shape (B, heads, T, T) with `pairs`.
        bound (`float`): What their absolute values are bounded by on shares.
        pairs (`bool`): Whether there is a value for every pair of tokens.
    """
    penalty = _watched.get()
    if penalty is not None:
        penalty.add(values, bound / MARGIN, pairs)
