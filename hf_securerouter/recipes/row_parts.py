# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which training rows the experts learn from, which the router, and which lambda and quotas are tuned on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.recipes.data import part_sizes, split_rows
from hf_securerouter.recipes.fitting import Row
from hf_securerouter.recipes.tasks import Task


ROUTER_SHARE, TUNING_SHARE = 0.2, 0.1  # of the training rows, which are held out from the experts
ROUTER_ROWS = 2000  # at most, of a large data set: the experts learn from the rest


@refuses_unknown
def split_training_rows(task: Task, rows: Sequence[Row], folds: int, seed: int) -> list[list[list[int]]]:
    """
    Seeded parts of the training rows.

    Args:
        task ([`Task`]): Their description.
        rows (sequence of `dict`): Not tokenized.
        folds (`int`): 2 or more for a cross-fitted run.
        seed (`int`): Of the draw.

    Returns:
        `list`: One split into experts', router's and tuning rows, each the indices of rows; or two of a cross-fitted
            run, into folds, and into router's and tuning rows.

    Raises:
        `SecureRouterValueError`: A part would be empty.
    """
    splits = _shares(len(rows), folds)
    return [split_rows(task, rows, shares, seed + number) for number, shares in enumerate(splits)]


@refuses_unknown
def check_count(task: Task, count: int, folds: int) -> None:
    """
    Refuses too few training rows before they are read any further. Those of a task with phrases are refused when they
    are split, as only their texts tell how many parts they can make.

    Args:
        task ([`Task`]): Their description.
        count (`int`): Training rows.
        folds (`int`): 2 or more for a cross-fitted run.

    Raises:
        `SecureRouterValueError`: A part would be empty, or the router of a regression would have one row, of which
            there is no correlation; it says how many rows are needed.
    """
    least = next(number for number in itertools.count(max(1, count)) if _suffices(task, number, folds))
    if least == count or task.has_phrases:
        return
    learners, fewer = ("the experts", "") if folds < 2 else (f"each of {folds} folds", ", or fewer `cross_fit_folds`")
    raise SecureRouterValueError(
        f"There are {count} training rows, and a run needs at least {least}, so that {learners}, the router and its "
        f"tuning have enough: pass more rows{fewer}."
    )


@refuses_unknown
def check_validation(task: Task, count: int) -> None:
    """
    Refuses a validation split that has no score, before anything is trained.

    Args:
        task ([`Task`]): Its description.
        count (`int`): Validation rows.

    Raises:
        `SecureRouterValueError`: A regression has a single row, of which there is no correlation.
    """
    if task.regression and count < 2:
        raise SecureRouterValueError(
            f"There is {count} validation row, and a regression needs at least 2, as one has no correlation: pass "
            "more rows, or a larger `max_eval_samples`."
        )


def _suffices(task: Task, count: int, folds: int) -> bool:
    sizes = [part_sizes(count, shares) for shares in _shares(count, folds)]
    routers = sizes[1][0] if folds >= 2 else sizes[0][1]
    return all(map(all, sizes)) and routers >= (2 if task.regression else 1)


def _shares(count: int, folds: int) -> list[list[float]]:
    """What each split divides off `count` rows, as shares of them."""
    if folds >= 2:
        return [[1 / folds] * (folds - 1), [TUNING_SHARE]]
    return [[min(ROUTER_SHARE, ROUTER_ROWS / count), TUNING_SHARE]]
