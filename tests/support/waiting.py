# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Waits with a deadline, whose failure says what was waited for."""

import time


LIMIT = 60.0  # seconds, also on a busy machine


def until(condition, what, limit=LIMIT):
    """Wait until a condition holds, and return what it found."""
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {limit:g} seconds for {what}"
        time.sleep(0.01)
    return found


def ended(thread, what, limit=LIMIT):
    """Wait until a thread has ended."""
    thread.join(limit)
    assert not thread.is_alive(), f"waited {limit:g} seconds for {what}"
