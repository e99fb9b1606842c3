# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The child processes of this process that have not ended, and theirs."""

from multiprocessing import forkserver, resource_tracker

import psutil

from hf_securerouter.mpc.sessions import fork_server


def children():
    """All child processes and theirs, except the servers that fork, and what `multiprocessing` forks."""
    ignored = {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}
    servers = {server.pid for server in fork_server._shared}
    found = []
    for child in psutil.Process().children():
        if child.pid not in ignored:
            found += [] if child.pid in servers else [child]
            found += child.children(recursive=True)
    return found
