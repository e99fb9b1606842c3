# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A network between the parties of one machine that takes time: every packet arrives a fixed delay after it was sent.

Each party gets a network namespace, and a relay in user space (`delay_relay.py`) is the only way between the two. The
parties' own TCP runs over it unchanged, whichever library opens it. It stands in for `tc netem`, which needs a kernel
module that many machines lack.
"""

from __future__ import annotations

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
    """This machine cannot delay the parties' link, or the relay is gone."""


class DelayedNetwork:
    """Two network namespaces and the relay between them; they are gone when it is closed or its process ends.

    Args:
        seconds (`float`): One way; both directions are delayed, neither is throttled.

    Raises:
        `DelayError`: Something that it takes is missing.
        `SecureRouterValueError`: `seconds` is not positive.

    Example:
        ```python
        network = DelayedNetwork(0.01)
        subprocess.Popen([*network.entering(0), *command], pass_fds=network.descriptors, env=env | network.environment)
        network.close()
        ```
    """

    # CrypTen's transport binds to the device that this names.
    environment = {"GLOO_SOCKET_IFNAME": DEVICE}

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds <= 10:
            raise SecureRouterValueError(
                f"`delay_ms` should be above 0 and at most 10000, got {seconds * 1000:g}; leave it out for no delay."
            )
        for needed, found in (
            ("`nsenter` (of util-linux)", shutil.which("nsenter")),
            (f"the device {_DEVICE_FILE}, open to this user", os.access(_DEVICE_FILE, os.R_OK | os.W_OK)),
        ):
            if not found:
                raise DelayError(
                    f"A delayed link takes {needed}, which is missing here. Run as root on Linux with TUN devices, or "
                    "leave out `delay_ms`: `estimated_seconds` needs no such thing."
                )
        self.descriptors: list[int] = []
        self._caller, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_RELAY), str(theirs.fileno()), repr(seconds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            self._caller.settimeout(_START_SECONDS)
            answer, self.descriptors, _, _ = socket.recv_fds(self._caller, 1024, 3)
            if not self.descriptors:
                raise DelayError(
                    "A delayed link takes network namespaces and TUN devices, which this machine does not allow this "
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
        """The command that runs what follows it in the namespace of party `rank`; it inherits `descriptors`."""
        network, *user = self.descriptors[rank], *self.descriptors[2:]
        command = ["nsenter", f"--net=/proc/self/fd/{network}"]
        return command + [f"--user=/proc/self/fd/{space}" for space in user] + ["--preserve-credentials"] * len(user)

    def wait(self) -> None:
        """Return when the relay has ended, whatever ended it."""
        self._process.wait()

    def close(self) -> None:
        """End the relay. Safe to call twice."""
        self._caller.close()
        self._process.kill()
        self._process.wait()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
