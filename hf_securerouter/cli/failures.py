# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a command ends that fails: one block on stderr (what, where, remedy), and a status.

2: what the user can mend, such as an argument, a field of a file, or a file that is missing. 1: what failed, such as a
server that left. The traceback is printed only when it is asked for.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import typer

from hf_securerouter.errors import FileError, SecureRouterError, SecureRouterValueError, SecureRouterWarning


DEBUG = "SECUREROUTER_DEBUG"

debugging: ContextVar[bool] = ContextVar("debugging", default=False)

_HINT = f"`securerouter --debug COMMAND ...`, or {DEBUG}=1, shows the traceback"
# Errors of files whose name, kind or permissions the user can mend; others, such as a full disk, are failures.
_OF_A_NAME = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class Commands(typer.Typer):
    """An app whose commands end with one block when they fail."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """As in typer."""
        add = super().command(*args, **kwargs)
        return lambda function: add(ending_with_one_block(function))


def ending_with_one_block(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that prints its error as one block, and exits with a status."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            if debugging.get():
                typer.echo(traceback.format_exc(), err=True)
            typer.echo(block(error), err=True)
            raise typer.Exit(status(error)) from None

    return run


def printing_warnings(others: Callable[..., None]) -> Callable[..., None]:
    """A `warnings.showwarning` that prints a warning of this package as text, without a line of code."""

    @functools.wraps(others)
    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, SecureRouterWarning):
            typer.echo(f"securerouter: warning: {message}", err=True)
        else:
            others(message, category, *args, **kwargs)

    return show


def status(error: Exception) -> int:
    """The status with which a command ends."""
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
