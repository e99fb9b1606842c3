# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a command ends that fails: one block on stderr (what, where, remedy), and a status.

2: what the user can mend, such as an argument, a field of a file, or a file that is missing. 1: what failed, such as a
server that left. The traceback is printed only when it is asked for.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import typer

from hf_securerouter.plain_messages import block, status


debugging: ContextVar[bool] = ContextVar("debugging", default=False)


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
