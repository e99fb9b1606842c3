# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Arguments that nobody knows are refused, and the nearest known one is named."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

from .errors import UnknownArgumentError


P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

ALIKE = 0.8  # a name that is that close to a known one is taken for a misspelt one


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is spelt most like `name`, whatever its case; None if none is.

    Args:
        name (`str`): What was given.
        known (iterable of `str`): What may be given.
        cutoff (`float`): How alike they have to be, from 0 to 1 (the same).
    """
    by_spelling = {other.lower(): other for other in sorted(known)}
    found = get_close_matches(name.lower(), by_spelling, n=1, cutoff=cutoff)
    return by_spelling[found[0]] if found else None


def refuse_unknown(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that are not known. Values are not shown: an unknown argument may be a misspelt token.

    Args:
        where (`str`): Who was given them, as it should stand in the message.
        given (iterable of `str`): Names of arguments, fields or keys.
        known (iterable of `str`): What may be given.

    Raises:
        `UnknownArgumentError`: A name is not known; the message names the nearest.
    """
    known = set(known)
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    listed = f" It knows {', '.join(sorted(known))}." if len(known) <= 16 else ""
    raise UnknownArgumentError(_unknown(where, unknown, known) + listed)


def refuse_misspelt(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that are spelt almost like known ones, where others may be meant for somebody else.

    Args:
        where (`str`), given (iterable of `str`), known (iterable of `str`): As for [`refuse_unknown`].

    Raises:
        `UnknownArgumentError`: A name is misspelt; the message says how it is spelt.
    """
    known = set(known)
    misspelt = [name for name in given if name not in known and nearest(name, known, ALIKE)]
    if misspelt:
        raise UnknownArgumentError(_unknown(where, misspelt, known))


def _unknown(where: str, names: Iterable[str], known: Iterable[str]) -> str:
    found = []
    for name in names:
        other = nearest(name, known)
        found.append(f"`{name}`" + (f" (did you mean `{other}`?)" if other else ""))
    return f"{where} does not know {', '.join(found)}: correct or remove it."


def refuses_unknown(function: Callable[P, R]) -> Callable[P, R]:
    """A function or method that refuses keywords that are none of its parameters, and names the nearest."""
    known = _keywords(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.keys() <= known:
            refuse_unknown(f"`{function.__qualname__.removesuffix('.__init__')}`", kwargs, known)
        return function(*args, **kwargs)

    return checked


def refuses_unknown_init(kind: C) -> C:
    """A class whose constructor refuses keywords that are none of its parameters, and names the nearest."""
    init: Any = kind.__init__  # type: ignore[misc]
    kind.__init__ = refuses_unknown(init)  # type: ignore[misc]
    return kind


def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds]
    return frozenset(names) - {"self", "cls"}
