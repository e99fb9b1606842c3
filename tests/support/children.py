# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The child processes of this process that have not ended."""

from multiprocessing import forkserver, resource_tracker

import psutil


def children():
    """All child processes, except the servers that `multiprocessing` keeps while this process lives."""
    kept = {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}
    return [child for child in psutil.Process().children() if child.pid not in kept]
