# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Log lines that strangers and clients cause: each once a minute, the others as a number."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable


WINDOW = 60.0  # seconds in which a line is written once


MOST = 20  # different lines of a window


def never_failing(log: Callable[[str], None]) -> Callable[[str], None]:
    """A log that drops a line which cannot be written: a full disk must not end the threads of a server.

    Args:
        log (callable): Takes a line.
    """

    def write(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed file raises the second
            log(line)

    return write


class CountedLog:
    """Writes each line once in `WINDOW` seconds, at most `MOST` of them, and then how many more there were.

    Args:
        log (callable): Takes a line.

    Example:
        ```python
        incidents = CountedLog(print)
        incidents("Refused a connection from 192.0.2.1: closed during the TLS handshake")
        ```
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._lock = log, threading.Lock()
        self._since, self._seen, self._more, self._last = time.monotonic(), set[str](), 0, ""

    def __call__(self, line: str) -> None:
        """Write a line, or count it."""
        self.flush()
        with self._lock:
            if line in self._seen or len(self._seen) >= MOST:
                self._more, self._last = self._more + 1, line
                return
            self._seen.add(line)
        self._log(line)

    def flush(self) -> None:
        """Write how many lines were counted, if the window is over."""
        with self._lock:
            if time.monotonic() - self._since < WINDOW:
                return
            more, last = self._more, self._last
            self._since, self._seen, self._more = time.monotonic(), set(), 0
        if more:
            self._log(f"{more} more such lines within {WINDOW:g} seconds, the last one: {last}")
