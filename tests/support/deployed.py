# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The roles of a sharing as processes that run the `securerouter` command, for tests."""

import contextlib
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import sys
import time
from multiprocessing import forkserver

import torch

from hf_securerouter import cli


LIMIT = 60.0
ROLES = ("dealer", "party0", "party1")

# Forked from one process that has loaded everything, since a fresh start takes seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_securerouter.cli", "hf_securerouter.mpc.deployment.party_server"])


def _command(arguments, log, before):
    torch.set_num_threads(1)  # three roles, and other tests, share the cores
    if before is not None:
        before()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    sys.argv = ["securerouter", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


def allow_core_dumps(pid):
    """Let a process and its later forks leave core dumps, as far as this machine lets anybody."""
    _, most = resource.prlimit(pid, resource.RLIMIT_CORE)
    resource.prlimit(pid, resource.RLIMIT_CORE, (most, most))


class Command:
    """One `securerouter` command in a process of its own, which calls `before` first."""

    def __init__(self, log, *arguments, before=None):
        self.log = log
        self._process = CONTEXT.Process(target=_command, args=(arguments, str(log), before), daemon=True)
        self._process.start()

    @property
    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, pattern, count=1):
        """The last of `count` matches in the command's output, within the limit."""
        deadline = time.monotonic() + LIMIT
        while len(found := list(re.finditer(pattern, self.said))) < count:
            assert time.monotonic() < deadline and self._process.is_alive(), self.said
            time.sleep(0.02)
        return found[-1]

    @property
    def pid(self):
        return self._process.pid

    def file_of_process(self, name):
        """What the kernel says of the process, such as its limits."""
        return pathlib.Path(f"/proc/{self._process.pid}/{name}").read_text()

    def signal(self, number):
        os.kill(self._process.pid, number)

    def status(self, limit=LIMIT):
        """The command's exit status, within the limit."""
        self._process.join(limit)
        assert self._process.exitcode is not None, self.said
        return self._process.exitcode

    def kill(self):
        self._process.kill()
        self._process.join(LIMIT)


class Deployment:
    """The dealer and both parties of a sharing, on ports of this machine; `options` are further ones by role."""

    def __init__(self, shares, logs, timeout=60, options=None, before=None, memory=None):
        self.shares, self.logs, self.timeout, self.further, self.before = shares, logs, timeout, options or {}, before
        self.ports, self.roles = {}, {}
        self.memory = memory or {}  # by role, in bytes

    def start(self, role):
        """Start a role, in the place of an earlier one."""
        options = ["--listen", f"127.0.0.1:{self.ports.get(role, 0)}", "--timeout", str(self.timeout)]
        if role != "dealer":
            options += ["--dealer", f"127.0.0.1:{self.ports['dealer']}"]
        if role == "party1":
            options += ["--peer", f"127.0.0.1:{self.ports['party0']}"]
        if role in self.memory:
            options += ["--memory", str(self.memory[role])]
        name = "dealer" if role == "dealer" else "party"
        options += self.further.get(role, [])
        log = self.logs / f"{role}-{len(list(self.logs.iterdir()))}.log"
        self.roles[role] = Command(log, name, str(self.shares / role), *options, before=self.before)
        self.ports[role] = int(self.roles[role].wait_for(r"listens at 127\.0\.0\.1:(\d+)\.")[1])

    def __enter__(self):
        forkserver.ensure_running()
        allow_core_dumps(forkserver._forkserver._forkserver_pid)  # so that roles have something to forbid
        with contextlib.ExitStack() as stack:
            stack.callback(self.kill)
            for role in ROLES:
                self.start(role)
            self.roles["party1"].wait_for("All roles are here")
            stack.pop_all()
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        for role in self.roles.values():
            role.kill()

    def address(self, role):
        return "127.0.0.1", self.ports[role]

    @property
    def options(self):
        """The options of a client: the parties' addresses."""
        return [item for role in ("party0", "party1") for item in (f"--{role}", "{}:{}".format(*self.address(role)))]
