# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Errors and warnings as a person reads them on a terminal: what, where and remedy, without a traceback."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from .errors import FileError, SecureRouterError, SecureRouterValueError, SecureRouterWarning


DEBUG = "SECUREROUTER_DEBUG"

_HINT = f"`securerouter --debug COMMAND ...`, or {DEBUG}=1, shows the traceback"
# Errors of files whose name, kind or permissions the user can mend; others, such as a full disk, are failures.
_OF_A_NAME = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def printing_warnings(others: Callable[..., None], once: bool = False) -> Callable[..., None]:
    """A `warnings.showwarning` that prints a warning of this package as text, without a line of code; with `once` no
    text twice."""
    printed: set[str] = set()

    @functools.wraps(others)
    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if not issubclass(category, SecureRouterWarning):
            others(message, category, *args, **kwargs)
        elif not once or str(message) not in printed:
            printed.add(str(message))
            print(f"securerouter: warning: {message}", file=sys.stderr, flush=True)

    return show


def status(error: Exception) -> int:
    """The status with which a command or a script ends."""
    return 2 if isinstance(error, (SecureRouterValueError, ImportError, *_OF_A_NAME)) else 1


def block(error: Exception) -> str:
    """What happened, where, and what to do. An error that nobody foresaw may hold a text or a key: it is not shown."""
    if isinstance(error, FileError):
        return f"securerouter: {error.what}.\n  where: {error.where}\n  remedy: {error.remedy}."
    if isinstance(error, (SecureRouterError, ImportError)):
        return f"securerouter: {error}"
    if isinstance(error, OSError) and error.strerror is not None:
        where = "" if error.filename is None else f"\n  where: {os.fspath(error.filename)}"
        remedy = "correct the path or its permissions" if isinstance(error, _OF_A_NAME) else _HINT
        return f"securerouter: {error.strerror}.{where}\n  remedy: {remedy}."
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"securerouter: {type(error).__name__}, which was not foreseen.\n"
        f"  where: {frame.filename}, line {frame.lineno}\n"
        f"  remedy: {_HINT}; please report it."
    )
