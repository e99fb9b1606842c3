# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Watches, in training, how far an expert's values exceed their bounds on shares, and penalises it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.nn import functional

from .number_format import MARGIN


class RangePenalty:
    """The penalty for values beyond their limits, a bound over `MARGIN` each; made by [`range_penalty`].

    Args:
        attention_mask (`torch.Tensor` of shape (B, T)): 0 for padding, whose values do not count.

    Attributes:
        widest (`float`): The largest ratio of an absolute value to its bound so far; above 1 a bound is exceeded and
            the encrypted result is wrong.
    """

    def __init__(self, attention_mask: torch.Tensor) -> None:
        self._is_token = attention_mask.bool()
        self._terms: list[torch.Tensor] = []
        self.widest = 0.0

    def __call__(self) -> torch.Tensor:
        """The penalty of all values so far.

        Returns:
            `torch.Tensor`: A scalar with a gradient, 0 if no value exceeds its limit. Each excess counts as a fraction
            of the limit (squared below a fifth), summed over values and layers, averaged over tokens.
        """
        return sum(self._terms, torch.zeros((), device=self._is_token.device))

    def add(self, values: torch.Tensor, limit: float, pairs: bool) -> None:
        """Record values that should stay within `limit`; see [`watch`]."""
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
        if largest > 1:  # rare once an expert is trained, and the lines below are slow
            over = functional.relu(values.abs() / limit - 1) * is_token
            penalty = functional.smooth_l1_loss(over, torch.zeros_like(over), reduction="sum", beta=0.2)
            self._terms.append(penalty / self._is_token.sum())


_watched: ContextVar[RangePenalty | None] = ContextVar("range_penalty", default=None)


@contextmanager
def range_penalty(attention_mask: torch.Tensor) -> Iterator[RangePenalty]:
    """Watch the values of every expert of reduced precision that runs in the block, in the block's own thread.

    `nn.DataParallel` runs a module in threads: open the block inside this module's `forward`. Activation checkpointing
    runs layers again after the block, unwatched, which PyTorch refuses (`CheckpointError`): leave it off.

    Args:
        attention_mask (`torch.Tensor` of shape (B, T)): 0 for padding.

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
    """Record values in the penalty, if one is watching; they should stay below a bound by the margin.

    Args:
        values (`torch.Tensor`): Of shape (B, T, ...) or (B, C); of shape (B, heads, T, T) with `pairs`.
        bound (`float`): The bound of their absolute values on shares.
        pairs (`bool`): Whether there is a value for every pair of tokens.
    """
    penalty = _watched.get()
    if penalty is not None:
        penalty.add(values, bound / MARGIN, pairs)
