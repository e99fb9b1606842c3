# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Watches keys while a server runs: connections of clients that are no longer allowed end, and expiry is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from ..net.counted_log import CountedLog, never_failing
from ..net.identity import Identity
from ..net.socket_stream import TlsStream


_BEAT = 0.5  # seconds between two looks at the allow list
_DAY = 86_400.0  # seconds between two warnings


class KeyWatch:
    """Looks at a role's keys and allow list, in a thread of its own; a context manager.

    Args:
        identity (`Identity`): The role's identity.
        log (callable): Takes a line for the role's operator.
    """

    def __init__(self, identity: Identity, log: Callable[[str], None]) -> None:
        self._identity, self._log = identity, never_failing(log)
        self._incidents = CountedLog(self._log)
        self._lock = threading.Lock()
        self._open: set[TlsStream] = set()
        self._ended = threading.Event()
        self._said: str | None = None

    def __enter__(self) -> KeyWatch:
        self._log(f"This is {self._identity.own}.")
        for peer in self._identity.peers:
            if peer.role != self._identity.role:
                self._log(f"Trusted: {peer}.")
        for user in self._identity.users:
            self._log(f"Allowed: {user}.")
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def connected(self, stream: TlsStream) -> Iterator[None]:
        """Watch a client's connection while the block runs; it is shut down when its key is no longer allowed."""
        with self._lock:
            self._open.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(stream)

    def _watch(self) -> None:
        known, due, said = self._identity.users, 0.0, None
        while True:
            try:
                warning = self._identity.own.warning()
                if warning and (warning != said or time.monotonic() >= due):
                    self._log(warning)
                    due, said = time.monotonic() + _DAY, warning
                known = self._look(known)
            except Exception as error:  # without this thread revoked clients would stay connected
                self._incidents(f"The keys could not be watched ({type(error).__name__}); tried again.")
            if self._ended.wait(_BEAT):
                return

    def _look(self, known: tuple) -> tuple:
        """Say what changed, and end connections that are not allowed; the allow list as it is now."""
        users = self._identity.users
        for user in users:
            if user not in known:
                self._log(f"Allowed from now on: {user}.")
        for user in known:
            if user not in users:
                self._log(f"Revoked: {user}.")
        if (problem := self._identity.problem) != self._said:
            self._said = problem
            if problem:
                self._log(problem)
        with self._lock:
            streams = list(self._open)
        for stream in streams:
            if not self._identity.allows(stream.fingerprint()):
                self._log(f"Ended a connection of {stream.name}: its key is revoked or has ended.")
                with contextlib.suppress(OSError):
                    stream.sock.shutdown(socket.SHUT_RDWR)
                with self._lock:
                    self._open.discard(stream)
        return users
