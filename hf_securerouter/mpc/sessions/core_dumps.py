# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""No core dump of a process that holds shares, seeds or keys."""

from __future__ import annotations

import contextlib
import ctypes
import resource


_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """Keep this process's memory out of core dumps and, where Linux offers it, from debuggers of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
