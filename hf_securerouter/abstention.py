# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Labels that are withheld where a model is not sure: decided by who reads the answer; no server learns of it."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import SecureRouterValueError
from .known_arguments import nearest
from .value_checks import is_number


AbstainBelow = float | Mapping[str, float]  # one threshold for every label, or thresholds by label

LIKELY = 0.5  # a label of a multi-label model is given from this probability on


def least_probabilities(
    abstain_below: AbstainBelow | None, names: Mapping[int, str], problem_type: str | None
) -> list[float]:
    """
    The probability from which on each label is given.

    Args:
        abstain_below (`float` or `Mapping[str, float]`, *optional*): The probability below which a label is withheld,
            for all labels or by label. What is left out is 0, and 0.5 for a multi-label model, which decides on each
            label by itself.
        names (`Mapping[int, str]`): The model's `id2label`.
        problem_type (`str`, *optional*): The model's, as in its config. A number has no probability.

    Raises:
        `SecureRouterValueError`: A threshold is not from 0 to 1 or is of a label that the model has not, or the model
            predicts a number.
    """
    several = problem_type == "multi_label_classification"
    labels = [names[index] for index in sorted(names)]
    if abstain_below is None:
        return [LIKELY if several else 0.0] * len(labels)
    if problem_type == "regression":
        raise SecureRouterValueError(
            f"`abstain_below` {abstain_below!r} is the least probability of a label, and the model predicts a number: "
            "leave it out."
        )
    if not isinstance(abstain_below, Mapping):
        abstain_below = dict.fromkeys(labels, abstain_below)
    for name, least in abstain_below.items():
        if name not in labels:
            other = nearest(name, labels)
            meant = f"did you mean {other!r}?" if other else f"its labels are {labels}."
            raise SecureRouterValueError(f"`abstain_below` has the label {name!r}, and the model has not: {meant}")
        if not is_number(least) or not 0 <= least <= 1:
            raise SecureRouterValueError(f"`abstain_below` should be a probability, from 0 to 1, got {least!r}.")
    return [abstain_below.get(name, LIKELY if several else 0.0) for name in labels]
