# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a training script runs: what its user can mend is said in one block, and a warning once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.plain_messages import DEBUG, block, printing_warnings, status


@refuses_unknown
def run_script(main: Callable[[], Any]) -> None:
    """
    Run the `main` of a script, which may be a run of hours.

    An error of this package ends it as it ends a command: one block on stderr, and status 2 for what the user can
    mend, 1 for what failed; the traceback too if SECUREROUTER_DEBUG is 1. Other errors keep their traceback. A warning
    of this package is printed as text, once, however many steps meet it.

    Args:
        main (callable): Reads its arguments from the command line.

    Raises:
        `SystemExit`: With the status.
    """
    warnings.showwarning = printing_warnings(warnings.showwarning, once=True)
    try:
        main()
    except SecureRouterError as error:
        if os.environ.get(DEBUG) == "1":
            raise
        print(block(error), file=sys.stderr, flush=True)
        sys.exit(status(error))
