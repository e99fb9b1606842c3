# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Labels that are withheld where a model is not sure: decided by who reads the answer; no server learns of it."""

from __future__ import annotations

from .errors import SecureRouterValueError


_WHY_NOT = {
    "regression": "predicts a number",
    "multi_label_classification": "decides on each label by itself",
}


def check_abstain_below(abstain_below: float | None, problem_type: str | None) -> None:
    """
    Refuses a threshold that cannot be one.

    Args:
        abstain_below (`float`, *optional*): The probability below which a label is withheld; None withholds none.
        problem_type (`str`, *optional*): The model's, as in its config. A number has no probability, and the labels of
            a multi-label model are decided one by one.

    Raises:
        `SecureRouterValueError`: It is not from 0 to 1, or the model has not one label for a text.
    """
    if abstain_below is None:
        return
    if not 0 <= abstain_below <= 1:
        raise SecureRouterValueError(f"`abstain_below` should be a probability, from 0 to 1, got {abstain_below!r}.")
    if problem_type in _WHY_NOT:
        raise SecureRouterValueError(
            f"`abstain_below` {abstain_below!r} is the least probability of one label, and the model "
            f"{_WHY_NOT[problem_type]}: leave it out."
        )
