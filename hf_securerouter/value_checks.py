# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Checks of a field or an argument: a wrong value is refused with the name, what it should be, and what it is."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

from .errors import SecureRouterValueError


Check = Callable[[Any], None]  # raises a SecureRouterValueError


def number(
    name: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Check:
    """A check that a field is a finite number within its bounds."""
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    wanted = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)

    def check(value: Any) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or (above is not None and value <= above)
            or (at_least is not None and value < at_least)
            or (below is not None and value >= below)
            or (at_most is not None and value > at_most)
        ):
            raise SecureRouterValueError(f"`{name}` should be a finite number {wanted}, got {value!r}.")

    return check


def integer(name: str, at_least: int) -> Check:
    """A check that a field, which JSON has to hold, is an integer of at least so much."""

    def check(value: Any) -> None:
        if not isinstance(value, int):
            raise _no_integer(name, value, at_least)
        check_integer(name, value, at_least)

    return check


def one_of(name: str, options: Sequence[Any]) -> Check:
    """A check that a field is one of some texts, numbers or switches."""

    def check(value: Any) -> None:
        if not any(type(value) is type(option) and value == option for option in options):
            wanted = ", ".join(map(str, options))
            raise SecureRouterValueError(f"`{name}` should be one of {wanted}, got {value!r}.")

    return check


def one_for_each_expert(name: str, check_item: Check) -> Check:
    """A check of every entry of a field that is a list, by the experts."""

    def check(value: Any) -> None:
        if not isinstance(value, (list, tuple)):
            raise SecureRouterValueError(f"`{name}` should be a list with one entry for each expert, got {value!r}.")
        for item in value:
            check_item(item)

    return check


def optional(check: Check) -> Check:
    """A check that lets None pass."""

    def check_optional(value: Any) -> None:
        if value is not None:
            check(value)

    return check_optional


def check_integer(name: str, value: Any, at_least: int, remedy: str = "") -> int:
    """Checks an argument, before anything is done with it.

    Args:
        name (`str`): The argument's name.
        value (`int`): Any integer, also one of NumPy; True and False are none.
        at_least (`int`): The least that it may be.
        remedy (`str`): What else may be done than to pass such an integer.

    Returns:
        `int`: The integer, as Python's own.

    Raises:
        `SecureRouterValueError`: `value` is no integer, or less.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise _no_integer(name, value, at_least, remedy)
    return int(value)


def is_number(value: Any) -> bool:
    """Whether an argument is a real number, also one of NumPy; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _no_integer(name: str, value: Any, at_least: int, remedy: str = "") -> SecureRouterValueError:
    after = f": {remedy}." if remedy else "."
    return SecureRouterValueError(f"`{name}` should be an integer of at least {at_least}, got {value!r}{after}")
