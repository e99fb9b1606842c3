# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which choices of a mixture's tokens are served, if each expert has a number of places for the tokens of a text."""

from __future__ import annotations

import torch


def served(chosen: torch.Tensor, is_token: torch.Tensor, experts: int, capacity: int | None) -> torch.Tensor:
    """Which choices are served: those of tokens, for which their expert has a place.

    Tokens take places in their order, all first choices before any second one. Padding takes none.

    Args:
        chosen (`torch.Tensor`): The experts of each token, best first, int64 (B, T, k).
        is_token (`torch.Tensor`): Whether a place holds a token, bool (B, T).
        experts (`int`): How many experts there are.
        capacity (`int`, *optional*): Places of each expert for the tokens of one text; None for as many as it takes.

    Returns:
        `torch.Tensor`: bool (B, T, k).
    """
    live = is_token[..., None].expand_as(chosen)
    if capacity is None:
        return live
    batch, length, choices = chosen.shape
    queue = torch.nn.functional.one_hot(chosen, experts) * live[..., None]
    queue = queue.transpose(1, 2).reshape(batch, choices * length, experts)
    place = (queue.cumsum(1) * queue).sum(-1).view(batch, choices, length).transpose(1, 2)
    return live & (place <= capacity)
