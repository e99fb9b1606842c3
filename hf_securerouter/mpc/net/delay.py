# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A slow network between two parties on one machine: every packet arrives a fixed delay after it was sent.

Each party gets a network namespace, and a relay in user space (`delay_relay.py`) is the only way between the two. The
parties' TCP runs over the relay unchanged, whichever library opens the connection. `tc netem` would do the same, but
needs a kernel module that many machines lack.
"""

from __future__ import annotations

import numbers
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from ...errors import SecureRouterError, SecureRouterValueError
from .delay_relay import DEVICE


_RELAY = Path(__file__).with_name("delay_relay.py")
_DEVICE_FILE = "/dev/net/tun"
_START_SECONDS = 10.0


class DelayError(SecureRouterError):
    """This machine cannot delay the parties' link, or the relay did not start."""


def check_delay(delay_ms: float) -> float:
    """Check a delay, before anything is run with it.

    Args:
        delay_ms (`float`): One-way delay in milliseconds, any real number, also one of NumPy.

    Returns:
        `float`: The milliseconds.

    Raises:
        `SecureRouterValueError`: `delay_ms` is no number, or not above 0 and at most 10000.
    """
    if isinstance(delay_ms, bool) or not isinstance(delay_ms, numbers.Real) or not 0 < delay_ms <= 10_000:
        raise SecureRouterValueError(
            f"`delay_ms` should be a number above 0 and at most 10000, got {delay_ms!r}; leave it out for no delay."
        )
    return float(delay_ms)


class DelayedNetwork:
    """Two network namespaces and the relay between them; `close`, or the end of this process, removes all three.

    Args:
        seconds (`float`): One-way delay of both directions; the bandwidth is not limited.

    Raises:
        `DelayError`: `nsenter`, TUN devices or the permission to make network namespaces is missing, or the relay did
            not start in time.
        `SecureRouterValueError`: `seconds` is not above 0 and at most 10.

    Example:
        ```python
        network = DelayedNetwork(0.01)
        subprocess.Popen([*network.entering(0), *command], pass_fds=network.descriptors, env=env | network.environment)
        network.close()
        ```
    """

    # Gloo, CrypTen's transport, binds to the network device of this name.
    environment = {"GLOO_SOCKET_IFNAME": DEVICE}

    def __init__(self, seconds: float) -> None:
        seconds = check_delay(seconds * 1000) / 1000
        for needed, found in (
            ("`nsenter` (of util-linux)", shutil.which("nsenter")),
            (f"the device {_DEVICE_FILE}, open to this user", os.access(_DEVICE_FILE, os.R_OK | os.W_OK)),
        ):
            if not found:
                raise DelayError(
                    f"A delayed link needs {needed}, which is missing here. Run as root on Linux with TUN devices, or "
                    "leave out `delay_ms`: `estimated_seconds` works without it."
                )
        self.descriptors: list[int] = []
        self._caller, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_RELAY), repr(seconds)],
                stdin=theirs.fileno(),  # so that its number is low, also in a process of many open files
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self._caller.settimeout(_START_SECONDS)
            answer, self.descriptors, _, _ = socket.recv_fds(self._caller, 1024, 3)
            if not self.descriptors:
                raise DelayError(
                    "A delayed link needs network namespaces and TUN devices, which this machine does not allow this "
                    f"user ({answer.decode(errors='replace') or 'the relay ended'}). Run as root, or leave out "
                    "`delay_ms`."
                )
        except TimeoutError as error:
            self.close()
            raise DelayError(f"The relay did not start within {_START_SECONDS:g} seconds.") from error
        except BaseException:
            self.close()
            raise

    def entering(self, rank: int) -> list[str]:
        """Prefix of a command that is to run in the namespace of party `rank`; its process needs `descriptors`."""
        network, *user = self.descriptors[rank], *self.descriptors[2:]
        command = ["nsenter", f"--net=/proc/self/fd/{network}"]
        return command + [f"--user=/proc/self/fd/{space}" for space in user] + ["--preserve-credentials"] * len(user)

    def wait(self) -> None:
        """Wait until the relay ends, for whatever reason."""
        self._process.wait()

    def close(self) -> None:
        """End the relay. Safe to call twice."""
        self._caller.close()
        self._process.kill()
        self._process.wait()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
