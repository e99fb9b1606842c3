# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The errors and the warning of hf_securerouter."""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence


_PACKAGE = os.path.dirname(__file__) + os.sep


class SecureRouterError(Exception):
    """Base class of every error that hf_securerouter raises itself."""


class SecureRouterValueError(SecureRouterError, ValueError):
    """An argument, a field of a config or a checkpoint is wrong; the message says what to do instead."""


class BadRowsError(SecureRouterValueError):
    """Rows of the inputs cannot be read; nothing was computed for the others either.

    Args:
        name (`str`): The argument.
        rows (`Mapping[int, str]`): By position, what is wrong with the row; never what is written in it.
    """

    MOST = 8  # rows that the message lists

    def __init__(self, name: str, rows: Mapping[int, str]) -> None:
        self.rows = dict(rows)
        listed = [f"`{name}[{row}]` {problem}" for row, problem in list(self.rows.items())[: self.MOST]]
        more = f"; and {len(self.rows) - self.MOST} more rows" if len(self.rows) > self.MOST else ""
        super().__init__(
            f"{'; '.join(listed)}{more}. Correct these rows or leave them out; `rows` of this error has all of them."
        )


class FileError(SecureRouterValueError):
    """A file is missing, is cut off, or holds something wrong.

    Args:
        what (`str`): What is wrong, as a sentence without its full stop.
        where (`str`): The file, with the field if one is wrong.
        remedy (`str`): What to do.
    """

    def __init__(self, what: str, where: str, remedy: str) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(f"{what} (in {where}): {remedy}.")


class SecureRouterWarning(UserWarning):
    """Something works, but perhaps not as the caller expects."""


def warn(message: str) -> None:
    """Warn with [`SecureRouterWarning`], at the line outside of this package that led here."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SecureRouterWarning, stacklevel=level)


class UnknownArgumentError(SecureRouterValueError, TypeError):
    """A callable or a config does not know an argument; the message names the nearest one that it knows. It is also a
    `TypeError`, which Python raises for this."""


class MissingPackageError(SecureRouterError, ImportError):
    """Packages of an extra of this package are not installed. It is also an `ImportError`, which Python raises for
    this.

    Args:
        purpose (`str`): What needs them, such as "The figure".
        names (sequence of `str`): The packages.
        extra (`str`): The extra that has them.
    """

    def __init__(self, purpose: str, names: Sequence[str], extra: str) -> None:
        super().__init__(f"{purpose} needs {' and '.join(names)}: `pip install 'hf_securerouter[{extra}]'`.")
