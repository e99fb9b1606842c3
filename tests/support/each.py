# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One case for many values, where a report with a line for each would say no more."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def each(name: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for every value of one of its arguments, in one case; a failure says which value it was.

    Not for a test whose fixtures have to be fresh for every value: they are made once.

    Args:
        name (`str`): The argument.
        values (`Iterable`): Its values, at least one.
    """
    chosen = list(values)
    assert chosen

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**arguments: Any) -> None:
            for value in chosen:
                try:
                    test(**arguments, **{name: value})
                except Exception as error:
                    error.add_note(f"{name} = {value!r}")
                    raise

        signature = inspect.signature(test)
        others = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        run.__signature__ = signature.replace(parameters=others)  # pytest asks for fixtures by it
        del run.__wrapped__
        return run

    return decorate
