# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Notices that the other end of one connection is gone while this end waits for something else."""

from __future__ import annotations

import contextlib
import select
import socket
import threading


_BEAT = 200  # milliseconds between two looks at whether the watch is over


class PeerWatch:
    """Watches a TCP connection, from a thread of its own; a context manager.

    It reads nothing, so it sees the end even behind data that nobody has read yet.

    Args:
        sock (`socket.socket`): The connection; it stays open until the block ends.

    Attributes:
        gone (`threading.Event`): Set once the other end has closed, or its machine no longer answers.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._lock, self._over = sock, threading.Lock(), threading.Event()
        self._others: list[socket.socket] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.gone = threading.Event()

    def __enter__(self) -> PeerWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def end_with_it(self, other: socket.socket) -> None:
        """Shut down another connection when the peer goes, which wakes whoever waits there."""
        with self._lock:
            self._others.append(other)
            if self.gone.is_set():
                _shut(other)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)  # errors and the end of both directions are always reported
        while not self._over.is_set():
            if poll.poll(_BEAT):
                with self._lock:
                    self.gone.set()
                    for other in self._others:
                        _shut(other)
                return


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
