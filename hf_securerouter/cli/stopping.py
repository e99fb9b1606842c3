# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a command ends that is stopped: as after an error, so that what it has half written is removed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator


QUIET = 5.0  # seconds in which more signals change nothing, since a lost terminal sends several


@contextlib.contextmanager
def stopped_as_by_an_error() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `SystemExit` in the block, with the status 128 + signal.

    Python would otherwise end at once, and leave secrets in a temporary folder when an ssh connection is lost. A
    signal that is ignored, as under `nohup`, stays ignored.
    """
    quiet_until = 0.0

    def stop(number: int, _: object) -> None:
        nonlocal quiet_until
        if time.monotonic() >= quiet_until:  # a second one soon after would interrupt the removal
            quiet_until = time.monotonic() + QUIET
            raise SystemExit(128 + number)

    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    try:
        for number in numbers:
            signal.signal(number, stop)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
