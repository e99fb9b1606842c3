# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a training script runs: what its user can mend is said in one block, and a warning once."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.plain_messages import DEBUG, block, printing_warnings, status


_LIBRARIES = ("datasets", "huggingface_hub", "transformers")


@refuses_unknown
def run_script(main: Callable[[], Any]) -> None:
    """
    Run the `main` of a script, which may be a run of hours.

    An error of this package ends it as it ends a command: one block on stderr, and status 2 for what the user can
    mend, 1 for what failed; the traceback too if SECUREROUTER_DEBUG is 1. So does an error in which a library of
    Hugging Face says that it did not get a file. Other errors keep their traceback. A warning of this package is
    printed as text, once, however many steps meet it.

    Args:
        main (callable): Reads its arguments from the command line.

    Raises:
        `SystemExit`: With the status.
    """
    warnings.showwarning = printing_warnings(warnings.showwarning, once=True)
    try:
        main()
    except SecureRouterError as error:
        _end(error, block(error))
    except OSError as error:
        if not _says_what_was_not_got(error):
            raise
        _end(error, f"securerouter: {' '.join(str(error).split())}")


def _end(error: Exception, text: str) -> NoReturn:
    if os.environ.get(DEBUG) == "1":
        raise error
    print(text, file=sys.stderr, flush=True)
    sys.exit(status(error))


def _says_what_was_not_got(error: OSError) -> bool:
    """Whether a library of Hugging Face raised an error with a message of its own, as where it does not find a
    checkpoint. An error of the operating system, such as a full disk, has a number."""
    raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return error.errno is None and raised_in.partition(".")[0] in _LIBRARIES
