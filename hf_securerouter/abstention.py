# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Labels that are withheld where a model is not sure: decided by who reads the answer; no server learns of it."""

from __future__ import annotations

from .errors import SecureRouterValueError


def check_abstain_below(abstain_below: float | None, regression: bool) -> None:
    """
    Refuses a threshold that cannot be one.

    Args:
        abstain_below (`float`, *optional*): The probability below which a label is withheld; None withholds none.
        regression (`bool`): Whether the model predicts a number, which has no probability.

    Raises:
        `SecureRouterValueError`: It is not from 0 to 1, or the model predicts a number.
    """
    if abstain_below is None:
        return
    if not 0 <= abstain_below <= 1:
        raise SecureRouterValueError(f"`abstain_below` should be a probability, from 0 to 1, got {abstain_below!r}.")
    if regression:
        raise SecureRouterValueError(
            f"`abstain_below` {abstain_below!r} is a probability, and the model predicts a number, which has none: "
            "leave it out."
        )
