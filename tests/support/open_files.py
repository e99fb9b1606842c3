# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A process with more open files than `select.select` takes."""

import contextlib
import os
import resource


@contextlib.contextmanager
def many_open_files(count=1100):
    """Open so many files, so that the numbers of later ones are larger than 1024."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(4096, limits[1])), limits[1]))
    opened = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
