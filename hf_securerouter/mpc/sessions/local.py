# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A local session: both parties and the dealer as processes of this machine, the owner and client in this one.

It is a way to try and to measure: one user owns all roles, and sees what no single server would.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SecureRouterValueError
from ..conversion.converted import Converted
from ..models.manifest import BATCH_SIZE
from ..net.channel import Channel, ChannelError
from ..net.delay import DelayedNetwork
from .session import SecureResult, Session, SessionError


__all__ = ["LocalSession", "SecureResult", "SessionError"]

ROLE_COMMAND = (sys.executable, "-m", "hf_securerouter.mpc.sessions.role_process")

# Freed memory is kept for the next tensor instead of being returned and faulted in again, and taken in huge pages
# where the kernel has them on request (glibc; other allocators ignore it).
ROLE_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

_RELAY = "relay"  # what its end is reported as; no role has this name


@dataclass
class _Role:
    process: subprocess.Popen
    channel: Channel


class LocalSession(Session):
    """Starts the roles, shares the weights and answers queries; a context manager.

    Whatever ends the `with` block (its end, an exception, Ctrl-C, a role's death) also ends all roles.

    Args:
        model (`Converted`): The converted model.
        timeout (`float`): Seconds that set-up, and each input of a query, may take.
        batch_size (`int`): Inputs that run together; more of them are split. Under `quota` a batch is the sum of the
            quotas, and a smaller one is filled up with copies of its inputs, which no role can tell from others.
        delay_ms (`float`, *optional*): Milliseconds that everything between the two parties takes, one way, to measure
            what a network would do; see `DelayedNetwork`. The dealer and the client are not delayed.

    Example:
        ```python
        with secure.local_session() as session:
            result = session(["first text", ("a text", "and its pair")])
            print(result.labels, result.cost.to_dict())
        ```

    Raises:
        `DelayError`: This machine cannot delay the parties' link.
        `SecureRouterValueError`: `delay_ms` is out of range, or the model's protocol and provider cannot be delayed.
        `SessionError`: A role died, did not answer in time, or reported an error.
    """

    def __init__(
        self,
        model: Converted,
        timeout: float = 600.0,
        batch_size: int = BATCH_SIZE,
        delay_ms: float | None = None,
    ) -> None:
        if delay_ms is not None and model.manifest.protocol == "crypten" and "dealer" in model.manifest.roles:
            raise SecureRouterValueError(
                "`delay_ms` joins two parties, and CrypTen's dealer would need a network with both: convert with "
                "`provider='tfp'`, whose party 0 deals, to measure."
            )
        super().__init__(model.manifest, model.client, model.sharing, timeout, batch_size)
        self.model = model
        self.delay_ms = delay_ms
        self._roles: dict[str, _Role] = {}
        self._folder: Path | None = None
        self._network: DelayedNetwork | None = None

    def _open(self) -> None:
        self._start()
        for shares in self.model.sharing.weights(self.model.weights):
            for role, tensors in shares.items():
                self._send(role, {"kind": "weights"}, tensors)
        for role in self._roles:
            self._send(role, {"kind": "ready"})
        self._collect("ready", self.timeout)

    def close(self) -> None:
        """End all roles, at once. Safe to call twice."""
        roles, self._roles = list(self._roles.values()), {}
        self._channels = {}
        for role in roles:
            role.process.kill()
        for role in roles:
            role.process.wait()
            role.channel.close()
        if self._network is not None:
            self._network.close()
            self._network = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self) -> None:
        # Private to this user (mode 0700): the roles meet here, and their error streams are kept here.
        self._folder = Path(tempfile.mkdtemp(prefix="securerouter-"))
        manifest = self.model.manifest
        if self.delay_ms is not None:
            self._network = DelayedNetwork(self.delay_ms / 1000)
            threading.Thread(target=self._watch, args=(self._network,), daemon=True).start()
        for name in manifest.roles:
            ours, theirs = socket.socketpair()
            before, spaces, environment = self._place(name)
            with theirs, (self._folder / f"{name}.log").open("wb") as log:
                # A session of its own keeps the terminal's Ctrl-C from the role; nothing else is inherited.
                process = subprocess.Popen(
                    [*before, *ROLE_COMMAND, name, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=[theirs.fileno(), *spaces],
                    env=os.environ | ROLE_ENVIRONMENT | environment,
                    start_new_session=True,
                )
            self._roles[name] = _Role(process, Channel(ours, name))
            self._add(name, self._roles[name].channel)
        for name in manifest.roles:
            self._send(
                name,
                {
                    "kind": "setup",
                    "manifest": manifest.to_dict(),
                    "folder": str(self._folder),
                    "threads": max(1, (os.cpu_count() or 2) // 2),
                    "timeout": self.timeout,
                },
            )

    def _watch(self, network: DelayedNetwork) -> None:
        network.wait()
        self._events.put((_RELAY, ChannelError("The relay ended.")))

    def _place(self, name: str) -> tuple[list[str], list[int], dict[str, str]]:
        """What puts a role on the delayed network: a command before its own, descriptors and environment."""
        if self._network is None or name == "dealer":
            return [], [], {}
        return self._network.entering(int(name[-1])), self._network.descriptors, self._network.environment

    def _failure(self, role: str, event: Any) -> SessionError:
        """What to tell the user: how a process ended, or the error that a role reported."""
        if role == _RELAY:
            return SessionError("The relay of the delayed link ended, and the session is over.")
        if not isinstance(event, ChannelError):
            # A role that dies makes the others fail, and their words may come first.
            time.sleep(0.5)
            killed = [name for name, other in self._roles.items() if (other.process.poll() or 0) < 0]
            if not killed:
                reported = event[0].get("error", "unexpected answer")
                return SessionError(f"{role} failed and the session is over: {reported}")
            role = killed[0]
        try:
            status = self._roles[role].process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return SessionError(f"{role} closed its channel, and the session is over.")
        if status < 0:
            return SessionError(f"{role} was killed by signal {-status}, and the session is over.")
        lines = (self._folder / f"{role}.log").read_text(errors="replace").splitlines() if self._folder else []
        last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), ".")
        return SessionError(f"{role} exited, and the session is over{last}")
